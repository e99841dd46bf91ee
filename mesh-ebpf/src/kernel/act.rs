//! Carrying out verdicts.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{__sk_buff, BPF_F_ZERO_CSUM_TX, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_tunnel_key};
use aya_ebpf::helpers::generated::{
    bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_set_tunnel_key,
};

use super::tables::Kernel;
use crate::abi::{Direction, DropReason};
use crate::lookups::Lookups;
use crate::verdict::{Tunnel, Verdict};

/// The kernel's packet type "for this host".
const PACKET_HOST: u32 = 0;
/// Time to live of outer packets.
const OUTER_TTL: u8 = 64;

/// The XDP program's return value that carries out the verdict.
#[inline(always)]
pub fn act_xdp(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Bounce => XDP_TX,
        Verdict::Drop(_) | Verdict::Refuse(_) => XDP_DROP,
        // The rest is TC's to do, on the same uplink.
        Verdict::Pass
        | Verdict::Emit { .. }
        | Verdict::Route { .. }
        | Verdict::Deliver { .. }
        | Verdict::Tunnel(_) => XDP_PASS,
    }
}

/// Carries out the verdict on a TC packet; returns the program's return value.
#[inline(always)]
pub fn act_skb(skb: *mut __sk_buff, kernel: &Kernel, direction: Direction, verdict: Verdict) -> i32 {
    // SAFETY: the context is valid for the program's run; the helpers check the ifindexes.
    unsafe {
        match verdict {
            Verdict::Pass => {
                kernel.count_passed(direction);
                TC_ACT_UNSPEC
            }
            Verdict::Drop(_) | Verdict::Refuse(_) => TC_ACT_SHOT,
            Verdict::Bounce => bpf_redirect((*skb).ifindex, 0) as i32,
            Verdict::Emit { ifindex } => bpf_redirect(ifindex, 0) as i32,
            Verdict::Route { ifindex } => bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32,
            Verdict::Deliver { ifindex } => {
                // Packets out of a VXLAN device count as somebody else's, until kernels of late.
                bpf_skb_change_type(skb, PACKET_HOST);
                bpf_redirect_peer(ifindex, 0) as i32
            }
            Verdict::Tunnel(tunnel) => match set_tunnel_key(skb, &tunnel) {
                Some(()) => bpf_redirect(tunnel.ifindex, 0) as i32,
                None => {
                    kernel.count_drop(DropReason::Resize, direction);
                    TC_ACT_SHOT
                }
            },
        }
    }
}

/// Tells the VXLAN device where the packet goes.
#[inline(always)]
fn set_tunnel_key(skb: *mut __sk_buff, tunnel: &Tunnel) -> Option<()> {
    // SAFETY: all zeros is a valid key.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = tunnel.vni.0;
    key.tunnel_ttl = OUTER_TTL;
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(tunnel.peer);
    key.__bindgen_anon_3.local_ipv4 = u32::from_be_bytes(tunnel.local);
    let flags = u64::from(BPF_F_ZERO_CSUM_TX);
    // SAFETY: the key has the size given.
    let result =
        unsafe { bpf_skb_set_tunnel_key(skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags) };
    (result == 0).then_some(())
}
