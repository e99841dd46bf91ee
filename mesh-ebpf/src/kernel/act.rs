//! Carries out what the pipeline decided about a packet.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{__sk_buff, BPF_F_ZERO_CSUM_TX, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_tunnel_key};
use aya_ebpf::helpers::generated::{
    bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_set_tunnel_key,
};

use super::maps;
use super::skb::mark_own;
use super::tables::Kernel;
use crate::abi::{Direction, DropReason, Edge};
use crate::lookups::Lookups;
use crate::parse::vxlan::Vni;
use crate::pipeline::Origin;
use crate::verdict::{Answer, Fate, Tunnel, Verdict};

/// The kernel's packet type "for this host".
const PACKET_HOST: u32 = 0;
/// Time to live of outer packets.
const OUTER_TTL: u8 = 64;

/// Carries out the fate of an XDP packet; returns the program's return value.
#[inline(always)]
pub fn act_xdp(fate: Fate) -> u32 {
    match fate.verdict() {
        Verdict::Bounce => XDP_TX,
        Verdict::Drop(_) | Verdict::Refuse(_) | Verdict::Answer(_) => XDP_DROP,
        // TC on the same uplink does the rest.
        Verdict::Pass
        | Verdict::Emit { .. }
        | Verdict::Route { .. }
        | Verdict::Deliver { .. }
        | Verdict::ViaDevice(_)
        | Verdict::Continue(_) => XDP_PASS,
    }
}

/// Carries out the fate of a TC packet; returns the program's return value.
#[inline(always)]
pub fn act_skb<C: EbpfContext>(context: &C, kernel: &Kernel, direction: Direction, fate: Fate) -> i32 {
    let skb: *mut __sk_buff = context.as_ptr().cast();
    // SAFETY: the context is valid for the program's run; the helpers check the ifindexes.
    unsafe {
        match fate.verdict() {
            Verdict::Pass => {
                kernel.count_passed(direction);
                TC_ACT_UNSPEC
            }
            Verdict::Drop(_) | Verdict::Refuse(_) => TC_ACT_SHOT,
            Verdict::Continue(edge) => {
                maps::EDGES.tail_call(context, edge as u32);
                // Userspace has not stored that program: the host stack may know what to do.
                kernel.count_passed(direction);
                TC_ACT_UNSPEC
            }
            Verdict::Answer(answer) => {
                hand_over(skb, &answer);
                maps::EDGES.tail_call(context, Edge::Refuse as u32);
                TC_ACT_SHOT
            }
            Verdict::Bounce => {
                mark_own(skb);
                bpf_redirect((*skb).ifindex, 0) as i32
            }
            Verdict::Emit { ifindex } => {
                mark_own(skb);
                bpf_redirect(ifindex, 0) as i32
            }
            Verdict::Route { ifindex } => {
                mark_own(skb);
                bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
            }
            Verdict::Deliver { ifindex } => {
                // Older kernels class packets out of a VXLAN device as "for another host".
                bpf_skb_change_type(skb, PACKET_HOST);
                bpf_redirect_peer(ifindex, 0) as i32
            }
            Verdict::ViaDevice(tunnel) => match through(skb, kernel, &tunnel) {
                Some(ifindex) => bpf_redirect(ifindex, 0) as i32,
                None => {
                    kernel.count_drop(DropReason::Resize, direction);
                    TC_ACT_SHOT
                }
            },
        }
    }
}

/// Writes the arguments of [`Edge::Refuse`] into the control block.
#[inline(always)]
fn hand_over(skb: *mut __sk_buff, answer: &Answer) {
    // SAFETY: the context is valid for the program's run, and its control block is the program's to
    // write.
    unsafe {
        (*skb).cb[0] = answer.reason as u32;
        (*skb).cb[1] = u32::from_ne_bytes(answer.back);
    }
}

/// Reads the arguments of [`Edge::Refuse`] from the control block.
#[inline(always)]
pub fn handed_over(skb: *mut __sk_buff) -> Answer {
    // SAFETY: the context is valid for the program's run.
    let (reason, back) = unsafe { ((*skb).cb[0], (*skb).cb[1]) };
    Answer { reason: DropReason::from_number(reason), back: back.to_ne_bytes() }
}

/// Writes the arguments of [`Edge::DecryptedError`] into the control block.
#[inline(always)]
pub fn hand_over_origin(skb: *mut __sk_buff, origin: Origin) {
    // SAFETY: as in `hand_over`.
    unsafe {
        (*skb).cb[0] = u32::from_ne_bytes(origin.peer);
        (*skb).cb[1] = origin.vni.0;
    }
}

/// Reads the arguments of [`Edge::DecryptedError`] from the control block.
#[inline(always)]
pub fn handed_over_origin(skb: *mut __sk_buff) -> Origin {
    // SAFETY: the context is valid for the program's run.
    let (peer, vni) = unsafe { ((*skb).cb[0], (*skb).cb[1]) };
    Origin::checked(peer.to_ne_bytes(), Vni(vni))
}

/// Sets the tunnel metadata that tell the VXLAN device where the packet goes; returns the device's
/// ifindex.
#[inline(always)]
fn through(skb: *mut __sk_buff, kernel: &Kernel, tunnel: &Tunnel) -> Option<u32> {
    let config = kernel.config()?;
    // SAFETY: all zeros is a valid key.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = tunnel.vni.0;
    key.tunnel_ttl = OUTER_TTL;
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(tunnel.peer);
    key.__bindgen_anon_3.local_ipv4 = u32::from_be_bytes(config.address.v4_octets());
    let flags = u64::from(BPF_F_ZERO_CSUM_TX);
    // SAFETY: the key has the size given.
    let result =
        unsafe { bpf_skb_set_tunnel_key(skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags) };
    (result == 0).then_some(config.tunnel_ifindex)
}
