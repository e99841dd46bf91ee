//! Neighbour discovery (RFC 4861) over Ethernet.

use super::{eth, icmp, ipv6};
use crate::abi::{Address, Mac};
use crate::packet::Packet;

/// Length of a solicitation or an advertisement of a neighbour, without options.
pub const LEN: usize = 24;
/// Length of an option with a MAC address.
pub const OPTION_LEN: usize = 8;
/// Hop limit of all these packets: none comes from another link.
pub const HOP_LIMIT: u8 = 255;
/// ICMPv6 type of a router's solicitation, the first of neighbour discovery.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type of a neighbour's solicitation: a request for its MAC address.
pub const SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour's advertisement: the answer.
pub const ADVERTISEMENT: u8 = 136;
/// ICMPv6 type of a redirect, the last of neighbour discovery.
const REDIRECT: u8 = 137;
/// The multicast address of all nodes of a link, `ff02::1`.
pub const ALL_NODES: Address = Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
/// The MAC address of that multicast address.
pub const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Option of a solicitation: the sender's MAC address.
const SOURCE_MAC: u8 = 1;
/// Option of an advertisement: the target's MAC address.
const TARGET_MAC: u8 = 2;
/// Flag of an advertisement: the sender is a router.
const ROUTER: u8 = 0x80;
/// Flag of an advertisement: it answers a solicitation.
const SOLICITED: u8 = 0x40;
/// Flag of an advertisement: it replaces what the receiver knows.
const OVERRIDE: u8 = 0x20;

/// Whether an ICMPv6 packet of this type is neighbour discovery.
#[inline(always)]
pub const fn is_discovery(kind: u8) -> bool {
    matches!(kind, ROUTER_SOLICITATION..=REDIRECT)
}

/// A solicitation or an advertisement of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// [`SOLICITATION`] or [`ADVERTISEMENT`].
    pub kind: u8,
    /// Whether an advertisement's sender says that it is a router.
    pub is_router: bool,
    /// The address in question.
    pub target: Address,
    /// The MAC address that the packet says, of its sender or its target; `None` if it says none.
    pub mac: Option<Mac>,
}

/// Parses what follows the IPv6 header, of `len` bytes; `None` unless it is a solicitation or an
/// advertisement with at most one option of eight bytes. The option of a solicitation without a
/// source address is a nonce (RFC 7527) and is ignored.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, len: u32, has_source: bool) -> Option<Neighbour> {
    const AT: usize = eth::LEN + ipv6::LEN;
    let bytes = packet.read_bytes::<LEN>(AT)?;
    let [kind, code, _, _, flags, ..] = bytes;
    if !matches!(kind, SOLICITATION | ADVERTISEMENT) || code != 0 {
        return None;
    }
    let mut target = [0; 16];
    target.copy_from_slice(&bytes[LEN - 16..]);
    let mac = if len == (LEN + OPTION_LEN) as u32 {
        let [option, words, m0, m1, m2, m3, m4, m5] = packet.read_bytes::<OPTION_LEN>(AT + LEN)?;
        let wanted = if kind == SOLICITATION { SOURCE_MAC } else { TARGET_MAC };
        match (option == wanted, has_source) {
            _ if words != 1 => return None,
            (true, true) => Some(Mac([m0, m1, m2, m3, m4, m5])),
            (false, false) => None,
            _ => return None,
        }
    } else if len == LEN as u32 {
        None
    } else {
        return None;
    };
    Some(Neighbour { kind, is_router: flags & ROUTER != 0, target: Address(target), mac })
}

/// The advertisement in which `target` says that it has this MAC address, without a checksum. It
/// answers a solicitation with a source address, or one without.
#[inline(always)]
pub fn advertisement(target: &Address, mac: Mac, is_solicited: bool) -> [u8; LEN + OPTION_LEN] {
    let flags = if is_solicited { SOLICITED | OVERRIDE } else { OVERRIDE };
    let mut bytes = [0; LEN + OPTION_LEN];
    bytes[0] = ADVERTISEMENT;
    bytes[4] = flags;
    bytes[LEN - 16..LEN].copy_from_slice(&target.0);
    bytes[LEN] = TARGET_MAC;
    bytes[LEN + 1] = 1;
    bytes[LEN + 2..].copy_from_slice(&mac.0);
    bytes
}

/// The link-local address that an interface with this MAC address forms by itself (RFC 4291,
/// appendix A).
#[inline(always)]
pub const fn link_local(mac: Mac) -> Address {
    let [m0, m1, m2, m3, m4, m5] = mac.0;
    Address([0xfe, 0x80, 0, 0, 0, 0, 0, 0, m0 ^ 2, m1, m2, 0xff, 0xfe, m3, m4, m5])
}

/// Whether this packet reports which multicast groups its sender listens to (RFC 3810, section 5.2;
/// RFC 2710): ICMPv6 behind a hop-by-hop header of eight bytes.
#[inline(always)]
pub fn is_group_report<P: Packet>(packet: &P) -> bool {
    const REPORT: u8 = 131;
    const DONE: u8 = 132;
    const REPORT_V2: u8 = 143;
    match packet.read_bytes::<9>(eth::LEN + ipv6::LEN) {
        Some([icmp::PROTOCOL_V6, 0, _, _, _, _, _, _, kind]) => {
            matches!(kind, REPORT | DONE | REPORT_V2)
        }
        _ => false,
    }
}
