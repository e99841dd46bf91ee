//! Changes to packets: address translation of packets and of those that ICMP errors quote, MSS
//! clamping, the tunnel's outer headers, and answers to packets that are not forwarded.

mod advertise;
mod answer;
mod headers;
mod outer_headers;
mod quote;

pub use advertise::advertise;
pub use answer::{answer_fragment_with_error, answer_with_error, answer_with_reset};
pub use outer_headers::{OuterHeaders, tunnel_source_port, write_outer};
pub use quote::translate_error;

use crate::abi::{Address, Be16, Mac};
use crate::csum;
use crate::packet::{Covered, Packet};
use crate::parse::transport::{DESTINATION_PORT, SOURCE_PORT};
use crate::parse::{Segment, eth, ip, ipv4, ipv6, tcp, transport};

/// The number of TCP options that are searched for the MSS; more than any stack sends.
const OPTIONS_MAX: usize = 10;

/// Which address of a packet a translation replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The source address: SNAT.
    Source,
    /// The destination address: DNAT.
    Destination,
}

/// A translation of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The side whose address and port are replaced.
    pub side: Side,
    /// The new address, of the packet's IP version.
    pub address: Address,
    /// The new port of that side; unchanged for a virtual IP.
    pub port_be: Be16,
    /// The port of the other side, the client's; mostly unchanged.
    pub client_port_be: Be16,
}

/// Translates the packet and decrements its TTL, which must not be 0.
#[inline(always)]
pub fn translate<P: Packet>(packet: &mut P, segment: &Segment, to: &Translation) -> Option<()> {
    let (ip, transport) = (&segment.ip, &segment.transport);
    let (source, destination) = (transport.source_port_be, transport.destination_port_be);
    let (old_address, old_port, port_offset, old_client_port, client_port_offset) = match to.side {
        Side::Source => (ip.source, source, SOURCE_PORT, destination, DESTINATION_PORT),
        Side::Destination => (ip.destination, destination, DESTINATION_PORT, source, SOURCE_PORT),
    };
    if ip.is_v6 {
        translate_ipv6(packet, ip, to.side, &to.address)?;
        packet.patch_pseudo_header(transport.checksum(), &old_address, &to.address)?;
    } else {
        let (old, new) = (old_address.v4_octets(), to.address.v4_octets());
        translate_ipv4(packet, ip, to.side, old, new)?;
        packet.patch_transport_checksum(transport.checksum(), old, new, Covered::PseudoHeader)?;
    }
    if old_port != to.port_be {
        replace_port(packet, transport, port_offset, old_port, to.port_be)?;
    }
    if old_client_port != to.client_port_be {
        replace_port(packet, transport, client_port_offset, old_client_port, to.client_port_be)?;
    }
    Some(())
}

/// Replaces an address of the IPv4 header and decrements the TTL.
#[inline(always)]
fn translate_ipv4<P: Packet>(
    packet: &mut P,
    ip: &ip::Header,
    side: Side,
    old: [u8; 4],
    new: [u8; 4],
) -> Option<()> {
    let old_hop = [ip.ttl, ip.protocol];
    let new_hop = [ip.ttl - 1, ip.protocol];
    let checksum = packet.read_bytes::<2>(ip.offset + ipv4::CHECKSUM)?;
    let checksum = csum::replace(csum::replace(checksum, &old, &new), &old_hop, &new_hop);
    let at = match side {
        Side::Source => ipv4::SOURCE,
        Side::Destination => ipv4::DESTINATION,
    };
    packet.write_bytes(ip.offset + ipv4::TTL, &new_hop)?;
    packet.write_bytes(ip.offset + ipv4::CHECKSUM, &checksum)?;
    packet.write_bytes(ip.offset + at, &new)
}

/// Replaces an address of the IPv6 header and decrements the hop limit. The caller updates the
/// transport checksum.
#[inline(always)]
fn translate_ipv6<P: Packet>(packet: &mut P, ip: &ip::Header, side: Side, new: &Address) -> Option<()> {
    let at = match side {
        Side::Source => ipv6::SOURCE,
        Side::Destination => ipv6::DESTINATION,
    };
    packet.write_and_resum(ip.offset + ipv6::NEXT_HEADER, &[ip.next_header(), ip.ttl - 1])?;
    packet.write_bytes(ip.offset + at, &new.0)
}

/// Replaces an address of a later fragment, which has no transport header, and decrements its TTL,
/// which must not be 0. The checksum that covers the address is in the first fragment.
#[inline(always)]
pub fn translate_address<P: Packet>(
    packet: &mut P,
    ip: &ip::Header,
    side: Side,
    address: &Address,
) -> Option<()> {
    if !ip.is_v6 {
        let old = match side {
            Side::Source => ip.source,
            Side::Destination => ip.destination,
        };
        return translate_ipv4(packet, ip, side, old.v4_octets(), address.v4_octets());
    }
    let at = match side {
        Side::Source => ipv6::SOURCE,
        Side::Destination => ipv6::DESTINATION,
    };
    packet.write_and_resum(ip.offset + ipv6::NEXT_HEADER, &[ip.next_header(), ip.ttl - 1])?;
    packet.write_and_resum(ip.offset + at, &address.0)
}

/// Replaces the port at `port_offset` of the transport header.
#[inline(always)]
fn replace_port<P: Packet>(
    packet: &mut P,
    header: &transport::Header,
    port_offset: usize,
    old: Be16,
    new: Be16,
) -> Option<()> {
    let word = |port: Be16| [port.0[0], port.0[1], 0, 0];
    packet.patch_transport_checksum(header.checksum(), word(old), word(new), Covered::Segment)?;
    packet.write_bytes(header.offset + port_offset, &new.0)
}

/// Lowers the MSS option of a SYN or SYN-ACK to `mss_max`, so that what the other side sends fits
/// the tunnel. A packet without that option, or with malformed ones, is left as it is.
#[inline(always)]
pub fn clamp_mss<P: Packet>(packet: &mut P, header: &transport::Header, mss_max: u16) -> Option<()> {
    let end = header.offset + header.len;
    let mut at = header.offset + tcp::LEN;
    for _ in 0..OPTIONS_MAX {
        if at + 4 > end {
            break;
        }
        let [kind, len, high, low] = packet.read_bytes::<4>(at)?;
        match (kind, len) {
            (tcp::OPTION_NOP, _) => at += 1,
            (tcp::OPTION_MSS, tcp::OPTION_MSS_LEN) => {
                let old = [high, low];
                if u16::from_be_bytes(old) > mss_max {
                    replace_mss(packet, header, at + 2, old, mss_max.to_be_bytes())?;
                }
                break;
            }
            (tcp::OPTION_END, _) | (_, 0 | 1) => break,
            (_, len) => at += usize::from(len),
        }
    }
    Some(())
}

/// Replaces the MSS at `at`. At an odd offset its bytes belong to two words of the checksum, which
/// has the same effect as one word with the bytes swapped.
#[inline(always)]
fn replace_mss<P: Packet>(
    packet: &mut P,
    header: &transport::Header,
    at: usize,
    old: [u8; 2],
    new: [u8; 2],
) -> Option<()> {
    let odd = (at - header.offset) & 1 == 1;
    let word = |[high, low]: [u8; 2]| if odd { [low, high, 0, 0] } else { [high, low, 0, 0] };
    packet.patch_transport_checksum(header.checksum(), word(old), word(new), Covered::Segment)?;
    packet.write_bytes(at, &new)
}

/// Overwrites both Ethernet addresses.
#[inline(always)]
pub fn set_macs<P: Packet>(packet: &mut P, destination: Mac, source: Mac) -> Option<()> {
    packet.write_bytes(eth::DESTINATION, &destination.0)?;
    packet.write_bytes(eth::SOURCE, &source.0)
}
