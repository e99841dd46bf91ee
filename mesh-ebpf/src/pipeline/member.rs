//! Checks which member sent a tunnel packet, and prepares packets to and from the VXLAN device for
//! that check.
//!
//! A member's packets bear a cookie. Userspace derives it for each pair of nodes from the members'
//! secret and writes it to the maps; programs only compare and copy it. It occupies bits that RFC
//! 7348 reserves, and the VXLAN device rejects packets in which they are set. So programs clear it
//! in packets that they leave to the device, and [`egress`] sets it in packets that the device
//! sends. A packet that the uplink's program has checked bears a mark on its way through the
//! device, whose own program accepts only such packets: the kernel's socket would hand it packets
//! of every interface and of every address of the node. Packets that the device sends bear the same
//! mark as far as the uplink.

use super::{OUTER, dropped};
use crate::abi::{Address, Be16, Config, Direction, DropReason, protocol};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::vxlan::{self, Vni};
use crate::parse::{eth, ipv4, transport};
use crate::verdict::Fate;

/// Why a packet with the tunnel's headers, from `peer`, is refused; `None` if it is accepted.
#[inline(always)]
pub(super) fn refusal<P: Packet, L: Lookups>(packet: &P, lookups: &L, peer: &Address) -> Option<DropReason> {
    match lookups.peer(peer).and_then(|index| lookups.member(index)) {
        Some(member) if member.admits(vxlan::cookie(packet, OUTER)) => None,
        Some(_) => Some(DropReason::BadCookie),
        None => Some(DropReason::UnknownPeer),
    }
}

/// Passes a checked packet to the VXLAN device and its program.
#[inline(always)]
pub(super) fn to_device<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    vni: Vni,
    direction: Direction,
) -> Fate {
    let is_plain = vxlan::cookie(packet, OUTER) == 0;
    if !is_plain && packet.write_and_resum(OUTER, &vxlan::header(vni, 0)).is_none() {
        return dropped(lookups, DropReason::Resize, direction);
    }
    packet.mark();
    Fate::PASS
}

/// Entry of TC egress on the VXLAN device: marks the packet, so that [`egress`] can tell the
/// device's packets from those of others (containers may send to any port, and the host may
/// translate their source address to its own).
#[inline(always)]
pub fn device<P: Packet>(packet: &mut P) {
    packet.mark();
}

/// Entry of TC egress on an uplink: writes into packets of the VXLAN device the cookie of the node
/// that they go to. Packets that programs encapsulated bear it already.
#[inline(always)]
pub fn egress<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) {
    if !packet.take_mark() {
        return;
    }
    let Some(config) = lookups.config() else { return };
    let Some(destination) = tunnel_destination(packet, config) else { return };
    let Some(node) = lookups.peer(&Address::v4(destination)).and_then(|index| lookups.node(index)) else {
        return;
    };
    if node.cookie == 0 || vxlan::cookie(packet, OUTER) != 0 {
        return;
    }
    if let Some(vni) = vxlan::parse(packet, OUTER) {
        // If the kernel refuses, the packet goes without a cookie, and the other node reports why
        // it rejects it.
        packet.write_and_resum(OUTER, &vxlan::header(vni, node.cookie));
    }
}

/// The node that a tunnel packet of this node goes to; `None` for any other packet, and for a
/// fragment without the tunnel's headers.
#[inline(always)]
fn tunnel_destination<P: Packet>(packet: &P, config: &Config) -> Option<[u8; 4]> {
    const IP: usize = eth::LEN;
    if packet.read_bytes::<2>(eth::TYPE)? != eth::IPV4_BE {
        return None;
    }
    let [version, ..] = packet.read_bytes::<1>(IP)?;
    let [o0, o1, _, kind] = packet.read_bytes::<4>(IP + ipv4::FLAGS)?;
    let port_be = Be16(packet.read_bytes::<2>(IP + ipv4::LEN + transport::DESTINATION_PORT)?);
    let [s0, s1, s2, s3, d0, d1, d2, d3] = packet.read_bytes::<8>(IP + ipv4::SOURCE)?;
    let is_tunnel = version == ipv4::VERSION_IHL
        && kind == protocol::UDP
        && u16::from_be_bytes([o0, o1]) & ipv4::FRAGMENT_OFFSET == 0
        && port_be == config.tunnel_port_be
        && [s0, s1, s2, s3] == config.address.v4_octets();
    if is_tunnel { Some([d0, d1, d2, d3]) } else { None }
}
