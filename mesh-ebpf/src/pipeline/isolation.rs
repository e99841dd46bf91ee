//! Isolation on `mesh`: drops what a task sends by its veth there to other tasks or to networks.
//! `mesh` gives a task its way out and serves its published ports; tasks reach each other only over
//! networks that both are on.

use super::dropped;
use crate::abi::{Address, Direction, DropReason};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::{eth, icmp, ipv4, ipv6, ndp};
use crate::verdict::Fate;

/// The last step for a packet from a task that is no reply of a flow: drops it if its destination
/// is another task or a network, else passes it to the host stack.
#[inline(always)]
pub(super) fn pass<P: Packet, L: Lookups>(packet: &P, lookups: &L) -> Fate {
    match destination(packet) {
        Some(address) if is_link_local(&address) || lookups.is_isolated(&address) => {
            dropped(lookups, DropReason::Isolated, Direction::Request)
        }
        _ => Fate::PASS,
    }
}

/// The destination of an IP packet, whole or a fragment; `None` for packets that isolation doesn't
/// check: neighbour discovery, and frames that are not IP.
#[inline(always)]
fn destination<P: Packet>(packet: &P) -> Option<Address> {
    const IP: usize = eth::LEN;
    match packet.read_bytes::<2>(eth::TYPE)? {
        eth::IPV4_BE => Some(Address::v4(packet.read_bytes::<4>(IP + ipv4::DESTINATION)?)),
        eth::IPV6_BE if is_neighbour_discovery(packet) => None,
        eth::IPV6_BE => Some(Address(packet.read_bytes::<16>(IP + ipv6::DESTINATION)?)),
        _ => None,
    }
}

/// Whether this IPv6 packet is neighbour discovery, without which a link doesn't work.
#[inline(always)]
fn is_neighbour_discovery<P: Packet>(packet: &P) -> bool {
    const FIRST: usize = ipv6::NEXT_HEADER;
    // One read instead of two: with two, the verifier finds the second one's byte undefined on the
    // path where only the first one fails.
    match packet.read_bytes::<{ ipv6::LEN + 1 - FIRST }>(eth::LEN + FIRST) {
        Some([protocol, .., kind]) => protocol == icmp::PROTOCOL_V6 && ndp::is_discovery(kind),
        None => false,
    }
}

/// Whether this is a link-local unicast address of IPv6, which every interface has.
#[inline(always)]
const fn is_link_local(address: &Address) -> bool {
    let [first, second, ..] = address.0;
    first == 0xfe && second & 0xc0 == 0x80
}
