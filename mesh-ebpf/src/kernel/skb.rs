//! A packet at a TC hook.
//!
//! The device may still have to finish its transport checksum (`CHECKSUM_PARTIAL`), so the checksum
//! is changed through the kernel's helper only.

use core::arch::asm;

use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode, bpf_tunnel_key,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_get_hash_recalc, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_proto,
    bpf_skb_change_tail, bpf_skb_get_tunnel_key, bpf_skb_pull_data, bpf_skb_store_bytes,
};

use super::xdp::{read_between, write_between};
use crate::abi::{Address, TUNNEL_MARK, protocol};
use crate::packet::{Checksum, Covered, Packet};
use crate::parse::vxlan::{OVERHEAD, Vni};
use crate::parse::{eth, fragment, icmp, ipv4, ipv6, pair, tcp, udp, vxlan};
use crate::pipeline::Origin;

/// `BPF_F_IPV6`, newer than the bindings: no IP header checksum makes up for a changed address.
const IPV6: u64 = 1 << 7;
/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV6`, newer than the bindings: the inner packet is IPv6. Linux 6.3 or
/// newer knows it.
const DECAP_L3_IPV6: u64 = 1 << 8;
/// Bytes by which an IPv6 header is longer than an IPv4 header.
const IPV6_GROWTH: usize = ipv6::LEN - ipv4::LEN;
/// Bytes that parsing may read: all headers with the longest TCP options, or those of an ICMP error
/// and the quoted headers of a first fragment as far as TCP's checksum.
const HEADERS_MAX: u32 =
    (eth::LEN + ipv6::LEN + icmp::LEN + ipv6::LEN + fragment::LEN_V6 + tcp::CHECKSUM + 2) as u32;
const _: () = assert!(HEADERS_MAX as usize >= eth::LEN + ipv6::LEN + 60, "the longest TCP header");

/// A packet at a TC hook.
pub struct Skb {
    skb: *mut __sk_buff,
}

impl Skb {
    /// The packet of this context, with all its headers where programs can read them. `None` for a
    /// packet with a VLAN tag: the kernel has removed the tag from the frame, which now looks like
    /// one of the untagged network.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Option<Self> {
        Self::readable(skb, HEADERS_MAX)
    }

    /// The packet of this context, which usually is a TCP or UDP packet, with as few headers pulled
    /// as that needs. A sender's TCP stack holds a packet until it is acknowledged: pulling more
    /// bytes of a 64 KiB packet would cost a new head and a reference to each of its pages.
    #[inline(always)]
    pub fn of_flow(skb: *mut __sk_buff) -> Option<Self> {
        Self::flow_at(skb, 0)
    }

    /// The packet of this context, a tunnel packet with its outer headers, likewise.
    #[inline(always)]
    pub fn in_tunnel(skb: *mut __sk_buff) -> Option<Self> {
        Self::flow_at(skb, OVERHEAD)
    }

    /// The packet of this context on its way out. Nothing is pulled: whoever wrote the tunnel's
    /// headers left them where programs can read them.
    #[inline(always)]
    pub fn outgoing(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// The packet of this context, whose (inner) frame begins at `frame`.
    #[inline(always)]
    fn flow_at(skb: *mut __sk_buff, frame: usize) -> Option<Self> {
        // SAFETY: the context is valid for the program's run.
        let is_tagged = unsafe { (*skb).vlan_present != 0 };
        let packet = Self { skb };
        if !is_tagged && packet.has_headers(frame) == Some(true) {
            return Some(packet);
        }
        Self::readable(skb, frame as u32 + HEADERS_MAX)
    }

    /// Whether all bytes that are read of a TCP or UDP packet, whose frame begins at `frame`, are
    /// readable without pulling: for TCP the header without options (a SYN's options are read too),
    /// for UDP also a VXLAN header behind it. `None` for other packets.
    #[inline(always)]
    fn has_headers(&self, frame: usize) -> Option<bool> {
        let network = frame + eth::LEN;
        let kind = self.read_bytes::<2>(frame + eth::TYPE)?;
        let (protocol, transport) = if kind == eth::IPV4_BE {
            let start = self.read_bytes::<8>(network)?;
            let is_plain = start[ipv4::VERSION] == ipv4::VERSION_IHL
                && u16::from_be_bytes(pair(&start, ipv4::FLAGS)) & ipv4::FRAGMENT == 0;
            if !is_plain {
                return None;
            }
            (self.read_bytes::<1>(network + ipv4::PROTOCOL)?, network + ipv4::LEN)
        } else if kind == eth::IPV6_BE {
            (self.read_bytes::<1>(network + ipv6::NEXT_HEADER)?, network + ipv6::LEN)
        } else {
            return None;
        };
        match protocol {
            [protocol::TCP] => Some(!tcp::parse(self, transport)?.flags.has(tcp::Flags::SYN)),
            [protocol::UDP] => Some(self.read_bytes::<{ udp::LEN + vxlan::LEN }>(transport).is_some()),
            _ => None,
        }
    }

    #[inline(always)]
    fn readable(skb: *mut __sk_buff, headers_max: u32) -> Option<Self> {
        // SAFETY: the context is valid for the program's run.
        unsafe {
            if (*skb).vlan_present != 0 {
                return None;
            }
            let wanted = if (*skb).len < headers_max { (*skb).len } else { headers_max };
            if (*skb).data_end - (*skb).data < wanted {
                // If the pull fails, parsing finds the packet too short and leaves it to the host
                // stack.
                bpf_skb_pull_data(skb, wanted);
            }
        }
        Some(Self { skb })
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is valid for the program's run.
        unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn read_bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        read_between(self.bounds(), offset)
    }

    #[inline(always)]
    fn write_bytes<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        write_between(self.bounds(), offset, bytes)
    }

    #[inline(always)]
    fn write_and_resum<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        let (from, flags) = (bytes.as_ptr().cast(), u64::from(BPF_F_RECOMPUTE_CSUM));
        // SAFETY: the context is valid, and the bytes have the length given; the helper checks the
        // offset.
        let result = unsafe { bpf_skb_store_bytes(self.skb, offset as u32, from, N as u32, flags) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn patch_transport_checksum(
        &mut self,
        checksum: Checksum,
        old: [u8; 4],
        new: [u8; 4],
        part: Covered,
    ) -> Option<()> {
        let pseudo = match part {
            Covered::PseudoHeader => u64::from(BPF_F_PSEUDO_HDR),
            Covered::Segment => 0,
        };
        let (from, to) = (u64::from(u32::from_ne_bytes(old)), u64::from(u32::from_ne_bytes(new)));
        let flags = pseudo | optional(checksum) | 4;
        // SAFETY: the context is valid; the helper checks the offset.
        let result = unsafe { bpf_l4_csum_replace(self.skb, checksum.offset as u32, from, to, flags) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn patch_pseudo_header(&mut self, checksum: Checksum, old: &Address, new: &Address) -> Option<()> {
        const LEN: u32 = size_of::<Address>() as u32;
        let (mut old, mut new) = (*old, *new);
        let (from, to) = (old.0.as_mut_ptr().cast(), new.0.as_mut_ptr().cast());
        let flags = u64::from(BPF_F_PSEUDO_HDR) | optional(checksum);
        let at = checksum.offset as u32;
        // SAFETY: the context is valid, and the addresses have the length given; the helper checks
        // the offset.
        unsafe {
            let difference = bpf_csum_diff(from, LEN, to, LEN, 0).cast_unsigned();
            if bpf_l4_csum_replace(self.skb, at, 0, difference, flags | IPV6) == 0 {
                return Some(());
            }
            // Kernels without that flag get the sum over the frame wrong with it, and recompute it
            // without.
            (bpf_l4_csum_replace(self.skb, at, 0, difference, flags) == 0).then_some(())
        }
    }

    /// The helper doesn't change a pending checksum when bytes other than the pseudo header change.
    #[inline(always)]
    fn is_checksum_pending(&mut self, offset: usize) -> Option<bool> {
        let before = self.read_bytes::<2>(offset)?;
        // SAFETY: the context is valid; the helper checks the offset.
        if unsafe { bpf_l4_csum_replace(self.skb, offset as u32, 0, 1, 2) } != 0 {
            return None;
        }
        Some(self.read_bytes::<2>(offset)? == before)
    }

    /// The kernel forgets a pending checksum that starts before the packet's data once the data
    /// changes: so this moves the start of the data behind it.
    #[inline(always)]
    fn drop_pending_checksum(&mut self) -> Option<()> {
        const PAST_THE_TRANSPORT_HEADER: i32 = 80;
        adjust_room(self.skb, -PAST_THE_TRANSPORT_HEADER, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))?;
        self.write_and_resum(eth::LEN, &[0; 2])
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        // SAFETY: the context is valid for the program's run.
        (unsafe { bpf_skb_change_tail(self.skb, len as u32, 0) } == 0).then_some(())
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        context_word::<{ core::mem::offset_of!(__sk_buff, ifindex) }>(self.skb)
    }

    #[inline(always)]
    fn mark(&mut self) {
        // SAFETY: the context is valid for the program's run, and the mark is a program's to write.
        unsafe { (*self.skb).mark = TUNNEL_MARK }
    }

    #[inline(always)]
    fn take_mark(&mut self) -> bool {
        take_mark(self.skb)
    }

    #[inline(always)]
    fn hand_over(&mut self, words: [u32; 5]) {
        // SAFETY: the context is valid for the program's run, and its control block is the
        // program's to write.
        unsafe { (*self.skb).cb = words }
    }

    #[inline(always)]
    fn handed_over(&self) -> [u32; 5] {
        // SAFETY: the context is valid for the program's run.
        unsafe { (*self.skb).cb }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        let segments = unsafe { (*self.skb).gso_segs };
        if segments == 0 { 1 } else { segments }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        context_word::<{ core::mem::offset_of!(__sk_buff, gso_size) }>(self.skb)
    }

    #[inline(always)]
    fn flow_hash(&self) -> Option<u32> {
        // SAFETY: the context is valid for the program's run.
        Some(unsafe { bpf_get_hash_recalc(self.skb) })
    }

    #[inline(always)]
    fn push_outer(&mut self) -> Option<()> {
        // The kernel makes room behind the first Ethernet header. The flags tell it what will be
        // there, so that devices can finish the inner packet's checksum.
        const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
            | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
            | (eth::LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        let inner = self.read_bytes::<{ eth::LEN }>(0)?;
        adjust_room(self.skb, OVERHEAD as i32, FLAGS)?;
        self.write_and_resum(OVERHEAD, &inner)
    }

    #[inline(always)]
    fn pull_outer(&mut self) -> Option<()> {
        let inner = self.read_bytes::<{ eth::LEN }>(OVERHEAD)?;
        let is_v6 = [inner[eth::TYPE], inner[eth::TYPE + 1]] == eth::IPV6_BE;
        let version = if is_v6 { DECAP_L3_IPV6 } else { 0 };
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO) | version;
        if adjust_room(self.skb, -(OVERHEAD as i32), flags).is_none() {
            if !is_v6 || self.segment_size() != 0 {
                return None;
            }
            shrink_to_ipv6(self)?;
        }
        self.write_bytes(0, &inner)
    }
}

/// Removes the outer headers of a tunnel packet with IPv6 inside, on kernels without
/// [`DECAP_L3_IPV6`]. There the packet would still count as IPv4, and the task's stack would not
/// take it. The helper that turns IPv4 packets into IPv6 sets the version, and adds the bytes by
/// which the header grows: so as many of the inner header are removed before, and written again.
///
/// Inlined: the packet's bounds change, and the verifier follows them in one function only.
#[inline(always)]
fn shrink_to_ipv6(packet: &mut Skb) -> Option<()> {
    let head = packet.read_bytes::<IPV6_GROWTH>(OVERHEAD + eth::LEN)?;
    let room = -((OVERHEAD + IPV6_GROWTH) as i32);
    adjust_room(packet.skb, room, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))?;
    let ethertype = u16::from_ne_bytes(eth::IPV6_BE);
    // SAFETY: the context is valid for the program's run; the helper checks the rest.
    (unsafe { bpf_skb_change_proto(packet.skb, ethertype, 0) } == 0).then_some(())?;
    packet.write_and_resum(eth::LEN, &head)
}

/// Reads a word of the context by an instruction of its own: the compiler would merge several reads
/// into one by a pointer to the field, and the verifier refuses to follow a changed pointer to the
/// context.
#[inline(always)]
fn context_word<const AT: usize>(skb: *mut __sk_buff) -> u32 {
    let word: u64;
    // SAFETY: the context is valid for the program's run, and the offset is a field's.
    unsafe {
        asm!(
            "{word} = *(u32 *)({skb} + {at})",
            word = out(reg) word,
            skb = in(reg) skb,
            at = const AT,
            options(pure, readonly, nostack),
        );
    }
    word as u32
}

/// Adds (or, if negative, removes) `room` bytes behind the Ethernet header.
#[inline(always)]
fn adjust_room(skb: *mut __sk_buff, room: i32, flags: u64) -> Option<()> {
    // SAFETY: the context is valid for the program's run; the helper checks the rest.
    let result = unsafe { bpf_skb_adjust_room(skb, room, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, flags) };
    (result == 0).then_some(())
}

/// The flag that makes the helper treat a checksum of 0 as UDP does.
#[inline(always)]
fn optional(checksum: Checksum) -> u64 {
    if checksum.is_optional { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 }
}

/// See [`Packet::take_mark`].
#[inline(always)]
fn take_mark(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid for the program's run, and the mark is a program's to write.
    unsafe {
        let is_marked = (*skb).mark == TUNNEL_MARK;
        if is_marked {
            (*skb).mark = 0;
        }
        is_marked
    }
}

/// The node and VNI that a packet out of the VXLAN device came from. A packet that came otherwise
/// gets the peer 0.0.0.0, which no node has. Clears the uplink's mark, as it means nothing to the
/// rest of the host.
#[inline(always)]
pub fn origin(skb: *mut __sk_buff) -> Origin {
    let is_checked = take_mark(skb);
    // SAFETY: all zeros is a valid key; the helper fills in at most the size given.
    unsafe {
        let mut key: bpf_tunnel_key = core::mem::zeroed();
        if bpf_skb_get_tunnel_key(skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, 0) != 0 {
            return Origin { peer: [0; 4], vni: Vni::request(0, false), is_checked };
        }
        let peer = key.__bindgen_anon_1.remote_ipv4.to_be_bytes();
        Origin { peer, vni: Vni(key.tunnel_id), is_checked }
    }
}

/// The value of `tc_index` by which [`is_forwarded`] recognises a packet that mesh sent. Nothing
/// else in today's kernels uses the field.
const OWN: u16 = 0x6d73;

/// Marks a packet as sent by mesh, so that the egress hook doesn't record it as a connection of
/// this node.
#[inline(always)]
pub(super) fn mark_own(skb: *mut __sk_buff) {
    // SAFETY: the context is valid for the program's run.
    unsafe { (*skb).tc_index = u32::from(OWN) }
}

/// Whether the host forwards this outgoing packet: it came in by another interface, and no program
/// of mesh sent it.
#[inline(always)]
pub fn is_forwarded(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid for the program's run.
    unsafe { (*skb).ingress_ifindex != 0 && (*skb).tc_index != u32::from(OWN) && (*skb).mark != TUNNEL_MARK }
}
