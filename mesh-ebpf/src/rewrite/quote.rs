//! Translation of ICMP errors: the error like a packet of its flow, and the packet that it quotes,
//! which went the other way, inversely.

use super::{Side, Translation, translate_ipv4, translate_ipv6};
use crate::abi::{Address, protocol};
use crate::csum;
use crate::packet::{Covered, Packet};
use crate::parse::icmp::Error;
use crate::parse::{ipv4, ipv6, tcp, udp};

/// Translates one side of the error, `to.side`, and the opposite side of the quoted packet. The
/// ports of `to` are those of the quoted packet. Decrements the error's TTL, which must not be 0.
#[inline(always)]
pub fn translate_error<P: Packet>(packet: &mut P, error: &Error, to: &Translation) -> Option<()> {
    let (ip, quote) = (&error.header(), &error.quote);
    let (old, old_quoted) = match to.side {
        Side::Source => (ip.source, quote.destination),
        Side::Destination => (ip.destination, quote.source),
    };
    if ip.is_v6 {
        translate_ipv6(packet, ip, to.side, &to.address)?;
        packet.patch_pseudo_header(error.checksum(), &old, &to.address)?;
    } else {
        // ICMP for IPv4 has no pseudo header in its checksum.
        translate_ipv4(packet, ip, to.side, old.v4_octets(), to.address.v4_octets())?;
    }
    let old_ports = packet.read_bytes::<4>(quote.transport())?;
    let ([p0, p1], [c0, c1]) = (to.port_be.0, to.client_port_be.0);
    let ports = match to.side {
        Side::Source => [c0, c1, p0, p1],
        Side::Destination => [p0, p1, c0, c1],
    };
    replace_quoted_address(packet, error, to, &old_quoted)?;
    replace_quoted_checksum(packet, error, (&old_quoted, &to.address), (old_ports, ports))?;
    packet.patch_transport_checksum(error.checksum(), old_ports, ports, Covered::Segment)?;
    packet.write_bytes(quote.transport(), &ports)
}

/// Replaces an address of the quoted IP header. For IPv4 that header's own checksum makes up for
/// the change.
#[inline(always)]
fn replace_quoted_address<P: Packet>(
    packet: &mut P,
    error: &Error,
    to: &Translation,
    old: &Address,
) -> Option<()> {
    let at = error.quote.offset();
    if !error.is_v6 {
        let (old, new) = (old.v4_octets(), to.address.v4_octets());
        let checksum = packet.read_bytes::<2>(at + ipv4::CHECKSUM)?;
        packet.write_bytes(at + ipv4::CHECKSUM, &csum::replace(checksum, &old, &new))?;
        let place = match to.side {
            Side::Source => ipv4::DESTINATION,
            Side::Destination => ipv4::SOURCE,
        };
        return packet.write_bytes(at + place, &new);
    }
    for word in [0, 4, 8, 12] {
        let bytes = |of: &Address| [of.0[word], of.0[word + 1], of.0[word + 2], of.0[word + 3]];
        packet.patch_transport_checksum(
            error.checksum(),
            bytes(old),
            bytes(&to.address),
            Covered::Segment,
        )?;
    }
    let place = match to.side {
        Side::Source => ipv6::DESTINATION,
        Side::Destination => ipv6::SOURCE,
    };
    packet.write_bytes(at + place, &to.address.0)
}

/// Updates the checksum of the quoted transport header, if the quotation contains it.
#[inline(always)]
fn replace_quoted_checksum<P: Packet>(
    packet: &mut P,
    error: &Error,
    (old, new): (&Address, &Address),
    (old_ports, ports): ([u8; 4], [u8; 4]),
) -> Option<()> {
    let is_udp = error.quote.protocol == protocol::UDP;
    let at = error.quote.transport() + if is_udp { udp::CHECKSUM } else { tcp::CHECKSUM };
    if !error.reaches(at + 2) {
        return Some(());
    }
    let Some(checksum) = packet.read_bytes::<2>(at) else {
        return Some(());
    };
    let patched = csum::replace_optional(checksum, is_udp, &old_ports, &ports);
    let patched = if error.is_v6 {
        csum::replace_optional(patched, is_udp, &old.0, &new.0)
    } else {
        csum::replace_optional(patched, is_udp, &old.v4_octets(), &new.v4_octets())
    };
    let word = |[high, low]: [u8; 2]| [high, low, 0, 0];
    packet.patch_transport_checksum(error.checksum(), word(checksum), word(patched), Covered::Segment)?;
    packet.write_bytes(at, &patched)
}
