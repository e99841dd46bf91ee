//! Changes to packets: address translation, MSS clamping, the outer headers of the tunnel, and the RST that answers
//! a packet nobody takes.

use crate::abi::{Be16, Mac, protocol};
use crate::csum;
use crate::packet::{Covered, Packet, Resizable};
use crate::parse::tcp::Flags;
use crate::parse::vxlan::{self, Vni};
use crate::parse::{Segment, eth, ipv4, tcp, udp};

/// Where the headers of an answer start: they follow the Ethernet header.
pub const ANSWER: usize = eth::LEN;
/// Length of an answer's headers.
pub const ANSWER_LEN: usize = ipv4::LEN + tcp::LEN;
/// Where the TCP checksum of an answer is in the packet.
pub const ANSWER_CHECKSUM: usize = ANSWER + ipv4::LEN + tcp::CHECKSUM;
/// Time to live of packets that begin here.
const TTL: u8 = 64;
/// "Don't fragment", no offset.
const DONT_FRAGMENT: [u8; 2] = [0x40, 0x00];
/// TCP options looked through for the MSS; more than any stack sends.
const OPTIONS_MAX: usize = 10;

/// Which end of a packet a translation gives another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Source: SNAT.
    Source,
    /// Destination: DNAT.
    Destination,
}

/// A translation of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The end that changes.
    pub end: End,
    /// Its new address.
    pub address: [u8; 4],
    /// Its new port.
    pub port_be: Be16,
    /// The port of the other end, the client's; mostly as it was.
    pub client_port_be: Be16,
}

/// Translates the packet and takes one hop off its time to live, which must not be 0.
#[inline(always)]
pub fn translate<P: Packet>(packet: &mut P, segment: &Segment, to: &Translation) -> Option<()> {
    let (ip, tcp) = (&segment.ip, &segment.tcp);
    let (address_offset, old_address, old_port, port_offset, old_client_port, client_port_offset) =
        match to.end {
            End::Source => (ipv4::SOURCE, ip.source, tcp.source_port_be, 0, tcp.destination_port_be, 2),
            End::Destination => {
                (ipv4::DESTINATION, ip.destination, tcp.destination_port_be, 2, tcp.source_port_be, 0)
            }
        };
    let old_hop = [ip.ttl, ip.protocol];
    let new_hop = [ip.ttl - 1, ip.protocol];
    let checksum = csum::replace(ip.checksum, &old_address, &to.address);
    let checksum = csum::replace(checksum, &old_hop, &new_hop);
    packet.store(ip.offset + ipv4::TTL, &new_hop)?;
    packet.store(ip.offset + ipv4::CHECKSUM, &checksum)?;
    packet.store(ip.offset + address_offset, &to.address)?;
    let at = tcp.offset + tcp::CHECKSUM;
    packet.patch_transport_checksum(at, old_address, to.address, Covered::PseudoHeader)?;
    replace_port(packet, tcp, port_offset, old_port, to.port_be)?;
    if old_client_port != to.client_port_be {
        replace_port(packet, tcp, client_port_offset, old_client_port, to.client_port_be)?;
    }
    Some(())
}

/// Replaces the port at `port_offset` of the TCP header.
#[inline(always)]
fn replace_port<P: Packet>(
    packet: &mut P,
    header: &tcp::Header,
    port_offset: usize,
    old: Be16,
    new: Be16,
) -> Option<()> {
    let word = |port: Be16| [port.0[0], port.0[1], 0, 0];
    packet.patch_transport_checksum(header.offset + tcp::CHECKSUM, word(old), word(new), Covered::Segment)?;
    packet.store(header.offset + port_offset, &new.0)
}

/// Lowers the MSS option of a SYN or SYN-ACK to `mss_max`, so that what the other side sends fits the tunnel.
/// A packet without that option, or with malformed ones, is left as it is.
#[inline(always)]
pub fn clamp_mss<P: Packet>(packet: &mut P, header: &tcp::Header, mss_max: u16) -> Option<()> {
    let end = header.offset + header.header_len;
    let mut at = header.offset + tcp::LEN;
    for _ in 0..OPTIONS_MAX {
        if at + 4 > end {
            break;
        }
        let [kind, len, high, low] = packet.load::<4>(at)?;
        match (kind, len) {
            (1, _) => at += 1, // no operation
            (2, 4) => {
                let old = [high, low];
                if u16::from_be_bytes(old) > mss_max {
                    replace_mss(packet, header, at + 2, old, mss_max.to_be_bytes())?;
                }
                break;
            }
            (0, _) | (_, 0 | 1) => break,
            (_, len) => at += usize::from(len),
        }
    }
    Some(())
}

/// Replaces the MSS at `at`. At an odd offset its bytes belong to two words of the checksum, which comes to the same
/// as one word with the bytes swapped.
#[inline(always)]
fn replace_mss<P: Packet>(
    packet: &mut P,
    header: &tcp::Header,
    at: usize,
    old: [u8; 2],
    new: [u8; 2],
) -> Option<()> {
    let odd = (at - header.offset) & 1 == 1;
    let word = |[high, low]: [u8; 2]| if odd { [low, high, 0, 0] } else { [high, low, 0, 0] };
    packet.patch_transport_checksum(header.offset + tcp::CHECKSUM, word(old), word(new), Covered::Segment)?;
    packet.store(at, &new)
}

/// Overwrites both Ethernet addresses.
#[inline(always)]
pub fn set_macs<P: Packet>(packet: &mut P, destination: Mac, source: Mac) -> Option<()> {
    packet.store(eth::DESTINATION, &destination.0)?;
    packet.store(eth::SOURCE, &source.0)
}

/// Both ends of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Next hop.
    pub destination_mac: Mac,
    /// This node's uplink.
    pub source_mac: Mac,
    /// This node.
    pub source: [u8; 4],
    /// The other node.
    pub destination: [u8; 4],
    /// UDP port of the tunnel.
    pub port_be: Be16,
    /// What the other node is told.
    pub vni: Vni,
}

/// Puts the outer headers in front of the client's frame, which stays as it is and becomes the inner one.
#[inline(always)]
pub fn encapsulate<P: Resizable>(packet: &mut P, segment: &Segment, outer: &Outer) -> Option<()> {
    const IP: usize = eth::LEN;
    const UDP: usize = IP + ipv4::LEN;
    const VXLAN: usize = UDP + udp::LEN;

    let inner_len = eth::LEN as u16 + segment.ip.total_len;
    let udp_len = inner_len.checked_add((udp::LEN + vxlan::LEN) as u16)?;
    let ip_len = udp_len.checked_add(ipv4::LEN as u16)?;
    packet.push_outer()?;

    let ip = ipv4_header(ip_len, protocol::UDP, &outer.source, &outer.destination);
    let ([s0, s1], [d0, d1]) = (tunnel_source_port(segment).0, outer.port_be.0);
    let ([l0, l1], [v0, v1, v2, v3]) = (udp_len.to_be_bytes(), outer.vni.to_bytes());
    set_macs(packet, outer.destination_mac, outer.source_mac)?;
    packet.store(12, &eth::IPV4_BE)?;
    packet.store(IP, &ip)?;
    packet.store(UDP, &[s0, s1, d0, d1, l0, l1, 0, 0])?;
    packet.store(VXLAN, &[vxlan::FLAG_VNI, 0, 0, 0, v0, v1, v2, v3])
}

/// Outer source port: the same for a flow, spread over flows, so that the network between balances them.
#[inline(always)]
fn tunnel_source_port(segment: &Segment) -> Be16 {
    const EPHEMERAL: u16 = 0xc000;
    let client = u32::from_be_bytes(segment.ip.source);
    let port = u32::from(segment.tcp.source_port_be.get());
    let hash = (client ^ port << 16 ^ port).wrapping_mul(0x9e37_79b1);
    Be16::new(EPHEMERAL | (hash >> 18) as u16)
}

/// A complete IPv4 header of a packet that begins here.
#[inline(always)]
fn ipv4_header(total_len: u16, protocol: u8, source: &[u8; 4], destination: &[u8; 4]) -> [u8; ipv4::LEN] {
    let ([l0, l1], [f0, f1]) = (total_len.to_be_bytes(), DONT_FRAGMENT);
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (*source, *destination);
    let mut header = [0x45, 0, l0, l1, 0, 0, f0, f1, TTL, protocol, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    let [c0, c1] = (!csum::fold(csum::sum(&header))).to_be_bytes();
    header[ipv4::CHECKSUM] = c0;
    header[ipv4::CHECKSUM + 1] = c1;
    header
}

/// A TCP packet without data that takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// IPv4 and TCP header, with their checksums.
    pub headers: [u8; ANSWER_LEN],
    /// The folded sum over the pseudo header: what stands in the checksum field while the device is to finish it.
    pub pseudo_header_sum: [u8; 2],
}

/// Turns the packet into the RST that answers it, with the ends exchanged (RFC 9293, section 3.10.7.1). A RST itself
/// has no answer.
#[inline(always)]
pub fn answer_with_reset<P: Packet>(packet: &mut P, segment: &Segment) -> Option<()> {
    let flags = segment.tcp.flags;
    if flags.has(Flags::RST) {
        return None;
    }
    let numbers = packet.load::<8>(segment.tcp.offset + tcp::SEQUENCE)?;
    let answer = reset(segment, numbers);
    let (source, destination) = (packet.load::<6>(eth::SOURCE)?, packet.load::<6>(eth::DESTINATION)?);
    set_macs(packet, Mac(source), Mac(destination))?;
    packet.become_answer(&answer)
}

/// The RST that answers `segment`, whose sequence and acknowledgement numbers are `numbers`.
#[inline(always)]
fn reset(segment: &Segment, numbers: [u8; 8]) -> Answer {
    let flags = segment.tcp.flags;
    let [q0, q1, q2, q3, a0, a1, a2, a3] = numbers;
    let (sequence, acknowledged, control) = if flags.has(Flags::ACK) {
        ([a0, a1, a2, a3], [0; 4], Flags::RST)
    } else {
        let taken = u32::from(segment.payload_len())
            + u32::from(flags.has(Flags::SYN))
            + u32::from(flags.has(Flags::FIN));
        let next = u32::from_be_bytes([q0, q1, q2, q3]).wrapping_add(taken);
        ([0; 4], next.to_be_bytes(), Flags::RST | Flags::ACK)
    };
    let (source, destination) = (segment.ip.destination, segment.ip.source);
    let ([s0, s1], [d0, d1]) = (segment.tcp.destination_port_be.0, segment.tcp.source_port_be.0);
    let ([q0, q1, q2, q3], [a0, a1, a2, a3]) = (sequence, acknowledged);
    let mut tcp = [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, 0x50, control, 0, 0, 0, 0, 0, 0];
    let pseudo = csum::pseudo_header(&source, &destination, protocol::TCP, tcp::LEN as u16);
    let [c0, c1] = (!csum::fold(pseudo + csum::sum(&tcp))).to_be_bytes();
    tcp[tcp::CHECKSUM] = c0;
    tcp[tcp::CHECKSUM + 1] = c1;

    let ip = ipv4_header(ANSWER_LEN as u16, protocol::TCP, &source, &destination);
    let mut headers = [0; ANSWER_LEN];
    headers[..ipv4::LEN].copy_from_slice(&ip);
    headers[ipv4::LEN..].copy_from_slice(&tcp);
    Answer { headers, pseudo_header_sum: csum::fold(pseudo).to_be_bytes() }
}
