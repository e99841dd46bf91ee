//! ICMP errors (RFC 792, RFC 4443): their kinds, and the packet that they quote.

use super::{eth, fragment, ip, ipv4, ipv6};
use crate::abi::{Address, Be16, protocol};
use crate::packet::{Checksum, Packet};

/// Length of the header of an ICMP error.
pub const LEN: usize = 8;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// Protocol number of ICMP for IPv4.
pub const PROTOCOL_V4: u8 = 1;
/// Protocol number of ICMP for IPv6.
pub const PROTOCOL_V6: u8 = 58;
/// The least number of bytes of the transport header that an error quotes: they contain the ports.
pub const QUOTED: usize = 8;

/// Type of "destination unreachable", for IPv4.
const UNREACHABLE_V4: u8 = 3;
/// Its code for "port unreachable".
const PORT_UNREACHABLE_V4: u8 = 3;
/// Its code for "fragmentation needed and don't fragment set".
const FRAGMENTATION_NEEDED_V4: u8 = 4;
/// Type of "time exceeded", for IPv4.
const TIME_EXCEEDED_V4: u8 = 11;
/// Type of "parameter problem", for IPv4.
const PARAMETER_PROBLEM_V4: u8 = 12;
/// Type of "destination unreachable", for IPv6.
const UNREACHABLE_V6: u8 = 1;
/// Its code for "port unreachable".
const PORT_UNREACHABLE_V6: u8 = 4;
/// Type of "packet too big", for IPv6.
const TOO_BIG_V6: u8 = 2;
/// Type of "parameter problem", for IPv6; "time exceeded" is before it.
const PARAMETER_PROBLEM_V6: u8 = 4;

/// The kind of an error for both IP versions: type, code, and the four bytes after the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// The bytes for IPv4.
    pub v4: [u8; 6],
    /// The bytes for IPv6.
    pub v6: [u8; 6],
}

/// "Packet too big" (RFC 1191, RFC 4443 section 3.2): the path takes packets of `mtu` bytes, and
/// this one must not be fragmented.
#[inline(always)]
pub const fn too_big(mtu: u32) -> IcmpError {
    let [m0, m1, m2, m3] = mtu.to_be_bytes();
    IcmpError {
        v4: [UNREACHABLE_V4, FRAGMENTATION_NEEDED_V4, 0, 0, m2, m3],
        v6: [TOO_BIG_V6, 0, m0, m1, m2, m3],
    }
}

/// "Port unreachable": nobody listens on that port.
pub const PORT_UNREACHABLE: IcmpError = IcmpError {
    v4: [UNREACHABLE_V4, PORT_UNREACHABLE_V4, 0, 0, 0, 0],
    v6: [UNREACHABLE_V6, PORT_UNREACHABLE_V6, 0, 0, 0, 0],
};

/// An ICMP error about a TCP or UDP packet, in a frame without a VLAN tag.
///
/// In the kernel it lies in a map, as a program's stack is small. Offsets are bytes, so that the
/// verifier knows their bounds when they are read from the map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Error {
    /// Source address of the error.
    pub source: Address,
    /// Destination address of the error.
    pub destination: Address,
    /// The quoted packet that the error is about.
    pub quote: Quote,
    /// Length of the error's IP header and payload, in bytes.
    pub total_len: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Whether the packet is IPv6.
    pub is_v6: bool,
    /// Whether it says "port unreachable": nobody listens on the quoted packet's destination port.
    pub is_refusal: bool,
}

/// A quoted packet: whole, or at least its IP header and [`QUOTED`] bytes more. Its IP version is
/// that of the error.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quote {
    /// Source address of the quoted packet.
    pub source: Address,
    /// Destination address of the quoted packet.
    pub destination: Address,
    /// Source port of the quoted packet.
    pub source_port_be: Be16,
    /// Destination port of the quoted packet.
    pub destination_port_be: Be16,
    /// Offset of the quoted IP header.
    offset: u8,
    /// Offset of the quoted transport header.
    transport: u8,
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
}

impl Quote {
    /// Offset of the quoted IP header.
    #[inline(always)]
    pub const fn offset(&self) -> usize {
        self.offset as usize
    }

    /// Offset of the quoted transport header.
    #[inline(always)]
    pub const fn transport(&self) -> usize {
        self.transport as usize
    }
}

impl Error {
    /// The error's IP header, as far as translation changes it.
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

    /// Where the error's ICMP checksum is.
    #[inline(always)]
    pub const fn checksum(&self) -> Checksum {
        let header_len = if self.is_v6 { ipv6::LEN } else { ipv4::LEN };
        Checksum { offset: eth::LEN + header_len + CHECKSUM, is_optional: false }
    }

    /// Whether the packet reaches `end`, counted from the Ethernet header on.
    #[inline(always)]
    pub const fn reaches(&self, end: usize) -> bool {
        eth::LEN + self.total_len as usize >= end
    }

    /// Stores the fields of the error's IP header.
    #[inline(always)]
    const fn take(&mut self, header: &ip::Header) {
        self.source = header.source;
        self.destination = header.destination;
        self.total_len = header.total_len;
        self.ttl = header.ttl;
        self.is_v6 = header.is_v6;
    }

    /// Stores the addresses and ports of the quoted packet with this IP header; `false` if they are
    /// missing, or the packet is neither TCP nor UDP.
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

/// Parses the frame into `error`; `false` if it is no error, or if it doesn't quote the ports.
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
    error.is_refusal = [kind, code] == [UNREACHABLE_V4, PORT_UNREACHABLE_V4];
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
    error.is_refusal = [kind, code] == [UNREACHABLE_V6, PORT_UNREACHABLE_V6];
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

/// Whether the frame, which is neither TCP nor UDP, looks like an ICMP error.
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

/// Destination unreachable, time exceeded, parameter problem. Not redirects, which are for hosts on
/// the same link.
#[inline(always)]
const fn is_error_v4(kind: u8) -> bool {
    matches!(kind, UNREACHABLE_V4 | TIME_EXCEEDED_V4 | PARAMETER_PROBLEM_V4)
}

/// Destination unreachable, packet too big, time exceeded, parameter problem.
#[inline(always)]
const fn is_error_v6(kind: u8) -> bool {
    matches!(kind, UNREACHABLE_V6..=PARAMETER_PROBLEM_V6)
}
