//! Answers to packets that are not forwarded: a RST for TCP, an ICMP error for the rest. The answer
//! is built in the packet's place, with source and destination exchanged.

use super::headers::{ipv4_header, ipv6_header};
use super::set_macs;
use crate::abi::Mac;
use crate::csum;
use crate::packet::Packet;
use crate::parse::tcp::Flags;
use crate::parse::{Segment, eth, fragment, icmp, ip, ipv4, ipv6, tcp};

/// The least length of a packet for [`Packet::drop_pending_checksum`].
const DROPPABLE: u32 = 1000;

/// Turns a TCP packet into the RST that answers it (RFC 9293, section 3.10.7.1). `None` for UDP and
/// for a RST, which must not be answered by a RST.
#[inline(always)]
pub fn answer_with_reset<P: Packet>(packet: &mut P, segment: &Segment) -> Option<()> {
    let (ip, transport) = (&segment.ip, &segment.transport);
    if segment.is_udp() || transport.flags.has(Flags::RST) {
        return None;
    }
    let mut tcp = reset(segment, packet.read_bytes::<8>(transport.offset + tcp::SEQUENCE)?);
    let is_pending = packet.is_checksum_pending(transport.checksum().offset)?;
    let pseudo = csum::pseudo_header(&ip.destination, &ip.source, ip.protocol, tcp::LEN as u32);
    let sum = csum::fold(pseudo);
    // A checksum that the device will finish holds the sum over the pseudo header.
    let checksum = if is_pending { sum } else { !csum::fold(u32::from(sum) + csum::sum(&tcp)) };
    let [high, low] = checksum.to_be_bytes();
    tcp[tcp::CHECKSUM] = high;
    tcp[tcp::CHECKSUM + 1] = low;
    turn_around(packet, ip, ip.protocol, tcp::LEN)?;
    packet.write_and_resum(ip.offset + ip.base_len(), &tcp)
}

/// The RST that answers `segment`, whose sequence and acknowledgement numbers are `numbers`;
/// without a checksum.
#[inline(always)]
fn reset(segment: &Segment, numbers: [u8; 8]) -> [u8; tcp::LEN] {
    let transport = &segment.transport;
    let flags = transport.flags;
    let [q0, q1, q2, q3, a0, a1, a2, a3] = numbers;
    let (sequence, acknowledged, control) = if flags.has(Flags::ACK) {
        ([a0, a1, a2, a3], [0; 4], Flags::RST)
    } else {
        let taken =
            segment.payload_len() + u32::from(flags.has(Flags::SYN)) + u32::from(flags.has(Flags::FIN));
        let next = u32::from_be_bytes([q0, q1, q2, q3]).wrapping_add(taken);
        ([0; 4], next.to_be_bytes(), Flags::RST | Flags::ACK)
    };
    let ([s0, s1], [d0, d1]) = (transport.destination_port_be.0, transport.source_port_be.0);
    let ([q0, q1, q2, q3], [a0, a1, a2, a3]) = (sequence, acknowledged);
    [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, 0x50, control, 0, 0, 0, 0, 0, 0]
}

/// Turns the packet into the ICMP error that answers it and quotes its headers (RFC 792, RFC 4443).
#[inline(always)]
pub fn answer_with_error<P: Packet>(
    packet: &mut P,
    segment: &Segment,
    error: &icmp::IcmpError,
) -> Option<()> {
    let pending_at = Some(segment.transport.checksum().offset);
    if segment.ip.is_v6 {
        const QUOTE: usize = ipv6::LEN + icmp::QUOTED;
        let pseudo = csum::pseudo_header(
            &segment.ip.destination,
            &segment.ip.source,
            icmp::PROTOCOL_V6,
            (icmp::LEN + QUOTE) as u32,
        );
        quote::<QUOTE, _>(packet, &segment.ip, pending_at, icmp::PROTOCOL_V6, error.v6, csum::fold(pseudo))
    } else {
        quote::<{ ipv4::LEN + icmp::QUOTED }, _>(
            packet,
            &segment.ip,
            pending_at,
            icmp::PROTOCOL_V4,
            error.v4,
            0,
        )
    }
}

/// Turns a first fragment with this IP header into the ICMP error that answers it.
#[inline(always)]
pub fn answer_fragment_with_error<P: Packet>(
    packet: &mut P,
    ip: &ip::Header,
    error: &icmp::IcmpError,
) -> Option<()> {
    if ip.is_v6 {
        const QUOTE: usize = ipv6::LEN + fragment::LEN_V6 + icmp::QUOTED;
        let len = (icmp::LEN + QUOTE) as u32;
        let pseudo = csum::pseudo_header(&ip.destination, &ip.source, icmp::PROTOCOL_V6, len);
        quote::<QUOTE, _>(packet, ip, None, icmp::PROTOCOL_V6, error.v6, csum::fold(pseudo))
    } else {
        quote::<{ ipv4::LEN + icmp::QUOTED }, _>(packet, ip, None, icmp::PROTOCOL_V4, error.v4, 0)
    }
}

/// Builds the ICMP error, quoting `QUOTE` bytes; `pseudo` is the sum over the pseudo header.
///
/// If the device still has to finish the checksum of the answered packet, at `pending_at` (`None`
/// for a fragment, which has none), it will do so in the answer too, at the same offset: that is in
/// the quotation for TCP, and in the ICMP header for UDP. It sums the ICMP message, whose own
/// checksum is already correct, so the result is what it finds there only if that is the sum over
/// the pseudo header.
#[inline(always)]
fn quote<const QUOTE: usize, P: Packet>(
    packet: &mut P,
    ip: &ip::Header,
    pending_at: Option<usize>,
    protocol: u8,
    [kind, code, rest @ ..]: [u8; 6],
    pseudo: u16,
) -> Option<()> {
    let quotation = packet.read_bytes::<QUOTE>(ip.offset)?;
    let is_pending = match pending_at {
        Some(at) => packet.is_checksum_pending(at)?,
        None => false,
    };
    // For UDP that offset is in the ICMP header, where the MTU is. And a checksum that no device
    // finishes, as between virtual ones, keeps its seed. A packet that is large enough to be too
    // big gets rid of the pending checksum instead.
    let is_pending = is_pending && !(ip.total_len >= DROPPABLE && packet.drop_pending_checksum().is_some());
    let [r0, r1, r2, r3] = rest;
    let mut header = [kind, code, 0, 0, r0, r1, r2, r3];
    let sum = u32::from(pseudo) + csum::sum(&header) + csum::sum(&quotation);
    let [high, low] = (!csum::fold(sum)).to_be_bytes();
    header[icmp::CHECKSUM] = high;
    header[icmp::CHECKSUM + 1] = low;
    turn_around(packet, ip, protocol, icmp::LEN + QUOTE)?;
    let at = ip.offset + ip.base_len();
    packet.write_and_resum(at, &header)?;
    packet.write_and_resum(at + icmp::LEN, &quotation)?;
    match pending_at {
        Some(at) if is_pending => packet.write_and_resum(at, &pseudo.to_be_bytes()),
        _ => Some(()),
    }
}

/// Sets the packet's length and writes the headers of an answer in front of it.
#[inline(always)]
fn turn_around<P: Packet>(packet: &mut P, ip: &ip::Header, protocol: u8, payload_len: usize) -> Option<()> {
    let (source, destination) =
        (packet.read_bytes::<6>(eth::SOURCE)?, packet.read_bytes::<6>(eth::DESTINATION)?);
    if !ip.source.is_host() {
        return None;
    }
    packet.resize(ip.offset + ip.base_len() + payload_len)?;
    set_macs(packet, Mac(source), Mac(destination))?;
    if ip.is_v6 {
        packet.write_and_resum(
            ip.offset,
            &ipv6_header(payload_len as u16, protocol, &ip.destination, &ip.source),
        )
    } else {
        let len = (ipv4::LEN + payload_len) as u16;
        packet.write_and_resum(
            ip.offset,
            &ipv4_header(len, protocol, ip.destination.v4_octets(), ip.source.v4_octets()),
        )
    }
}
