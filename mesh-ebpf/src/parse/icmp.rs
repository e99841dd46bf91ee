//! ICMP errors (RFC 792, RFC 4443): what they say, and the packet that they quote.

use super::{eth, fragment, ip, ipv4, ipv6};
use crate::abi::{Address, Be16, protocol};
use crate::packet::{Checksum, Packet};

/// Length of the header of an error.
pub const LEN: usize = 8;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// Protocol number of ICMP for IPv4.
pub const PROTOCOL_V4: u8 = 1;
/// Protocol number of ICMP for IPv6.
pub const PROTOCOL_V6: u8 = 58;
/// Bytes of the transport header that an error quotes at least: the ports are in them.
pub const QUOTED: usize = 8;

/// What an error says, in both versions: type, code, and the four bytes that follow the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// For IPv4.
    pub v4: [u8; 6],
    /// For IPv6.
    pub v6: [u8; 6],
}

/// Too big for the way, which takes packets of `mtu` bytes, and not to be fragmented (RFC 1191, RFC
/// 4443 section 3.2).
#[inline(always)]
pub const fn too_big(mtu: u32) -> Kind {
    let [m0, m1, m2, m3] = mtu.to_be_bytes();
    Kind { v4: [3, 4, 0, 0, m2, m3], v6: [2, 0, m0, m1, m2, m3] }
}

/// Nobody listens on that port.
pub const PORT_UNREACHABLE: Kind = Kind { v4: [3, 3, 0, 0, 0, 0], v6: [1, 4, 0, 0, 0, 0] };

/// An error about a TCP or UDP packet, in a frame without VLAN tag.
///
/// In the kernel it lies in a map, as a program's stack is short: offsets are bytes, so that the
/// verifier knows their bounds when they come from there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Error {
    /// Its source address.
    pub source: Address,
    /// Its destination address.
    pub destination: Address,
    /// The packet that it is about.
    pub quote: Quote,
    /// Length of its IP header and payload, in bytes.
    pub total_len: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Whether it is one of IPv6.
    pub is_v6: bool,
    /// Nobody listens on the port that the quoted packet was for.
    pub is_refusal: bool,
}

/// A quoted packet: whole, or as little as its IP header and [`QUOTED`] bytes more. It has the IP
/// version of the error.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quote {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port_be: Be16,
    /// Destination port.
    pub destination_port_be: Be16,
    /// Where its IP header starts.
    offset: u8,
    /// Where its transport header starts.
    transport: u8,
    /// Protocol number, that of TCP or UDP.
    pub protocol: u8,
}

impl Quote {
    /// Where its IP header starts.
    #[inline(always)]
    pub const fn offset(&self) -> usize {
        self.offset as usize
    }

    /// Where its transport header starts.
    #[inline(always)]
    pub const fn transport(&self) -> usize {
        self.transport as usize
    }
}

impl Error {
    /// Its IP header, as far as it is changed on the way.
    #[inline(always)]
    pub const fn header(&self) -> ip::Header {
        ip::Header {
            offset: eth::LEN,
            is_v6: self.is_v6,
            extension_len: 0,
            total_len: self.total_len,
            ttl: self.ttl,
            protocol: if self.is_v6 { PROTOCOL_V6 } else { PROTOCOL_V4 },
            dont_fragment: true,
            source: self.source,
            destination: self.destination,
        }
    }

    /// Where its checksum is.
    #[inline(always)]
    pub const fn checksum(&self) -> Checksum {
        let header_len = if self.is_v6 { ipv6::LEN } else { ipv4::LEN };
        Checksum { offset: eth::LEN + header_len + CHECKSUM, is_optional: false }
    }

    /// Whether it has these many bytes, from the Ethernet header on.
    #[inline(always)]
    pub const fn reaches(&self, end: usize) -> bool {
        eth::LEN + self.total_len as usize >= end
    }

    /// Takes its own IP header.
    #[inline(always)]
    const fn take(&mut self, header: &ip::Header) {
        self.source = header.source;
        self.destination = header.destination;
        self.total_len = header.total_len;
        self.ttl = header.ttl;
        self.is_v6 = header.is_v6;
    }

    /// Takes the ends of the quoted packet with this IP header; `false` if they aren't there, or
    /// not of TCP or UDP.
    #[inline(always)]
    fn quote<P: Packet>(
        &mut self,
        packet: &P,
        header: &ip::Header,
        transport: usize,
        next_protocol: u8,
    ) -> bool {
        let Some([s0, s1, d0, d1, ..]) = packet.read_bytes::<QUOTED>(transport) else {
            return false;
        };
        self.quote = Quote {
            source: header.source,
            destination: header.destination,
            source_port_be: Be16([s0, s1]),
            destination_port_be: Be16([d0, d1]),
            offset: header.offset as u8,
            transport: transport as u8,
            protocol: next_protocol,
        };
        let is_ours = next_protocol == protocol::TCP || next_protocol == protocol::UDP;
        is_ours && self.reaches(transport + QUOTED)
    }
}

/// Reads the frame into `error`; `false` if it is no error, also where the quotation doesn't tell
/// the ports.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, error: &mut Error) -> bool {
    match packet.read_bytes::<2>(eth::TYPE) {
        Some(eth::IPV4_BE) => parse_v4(packet, error),
        Some(eth::IPV6_BE) => parse_v6(packet, error),
        _ => false,
    }
}

#[inline(always)]
fn parse_v4<P: Packet>(packet: &P, error: &mut Error) -> bool {
    let Some(ip) = ipv4::parse(packet, eth::LEN) else {
        return false;
    };
    let Some([kind, code]) = packet.read_bytes::<2>(ip.payload()) else {
        return false;
    };
    if ip.protocol != PROTOCOL_V4 || !is_error_v4(kind) {
        return false;
    }
    let Some(quoted) = ipv4::parse_first(packet, ip.payload() + LEN) else {
        return false;
    };
    error.take(&ip);
    error.is_refusal = [kind, code] == [3, 3];
    error.quote(packet, &quoted, quoted.payload(), quoted.protocol)
}

#[inline(always)]
fn parse_v6<P: Packet>(packet: &P, error: &mut Error) -> bool {
    let Some(ip) = ipv6::parse(packet, eth::LEN) else {
        return false;
    };
    let Some([kind, code]) = packet.read_bytes::<2>(ip.payload()) else {
        return false;
    };
    if ip.protocol != PROTOCOL_V6 || !is_error_v6(kind) {
        return false;
    }
    let Some(quoted) = ipv6::parse(packet, ip.payload() + LEN) else {
        return false;
    };
    error.take(&ip);
    error.is_refusal = [kind, code] == [1, 4];
    if quoted.protocol != fragment::HEADER_V6 {
        return error.quote(packet, &quoted, quoted.payload(), quoted.protocol);
    }
    let Some([next, _, offset_high, offset_low]) = packet.read_bytes::<4>(quoted.payload()) else {
        return false;
    };
    if u16::from_be_bytes([offset_high, offset_low]) & fragment::OFFSET_V6 != 0 {
        return false;
    }
    error.quote(packet, &quoted, quoted.payload() + fragment::LEN_V6, next)
}

/// Whether the frame, which is none of TCP or UDP, is an error worth a closer look.
#[inline(always)]
pub fn is_error<P: Packet>(packet: &P) -> bool {
    let at = eth::LEN;
    match packet.read_bytes::<2>(eth::TYPE) {
        Some(eth::IPV4_BE) => {
            packet.read_bytes::<1>(at + ipv4::PROTOCOL) == Some([PROTOCOL_V4])
                && packet.read_bytes::<1>(at + ipv4::LEN).is_some_and(|[kind]| is_error_v4(kind))
        }
        Some(eth::IPV6_BE) => {
            packet.read_bytes::<1>(at + ipv6::NEXT_HEADER) == Some([PROTOCOL_V6])
                && packet.read_bytes::<1>(at + ipv6::LEN).is_some_and(|[kind]| is_error_v6(kind))
        }
        _ => false,
    }
}

/// Unreachable, time exceeded, parameter problem. Not redirects, which are for hosts on the same
/// link.
#[inline(always)]
const fn is_error_v4(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// Unreachable, too big, time exceeded, parameter problem.
#[inline(always)]
const fn is_error_v6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}
