//! IP fragments (RFC 791, RFC 8200 section 4.5).

use super::{Segment, eth, ip, ipv4, ipv6, pair, transport};
use crate::abi::{FragmentKey, FragmentPorts, protocol};
use crate::packet::Packet;

/// Next-header number of IPv6's fragment header.
pub const HEADER_V6: u8 = 44;
/// Length of IPv6's fragment header.
pub const LEN_V6: usize = 8;
/// The bits of IPv6's fragment header that hold the offset; the lowest bit of the field says that
/// more fragments follow.
pub const OFFSET_V6: u16 = 0xfff8;

/// The header fields of a fragment of a TCP or UDP packet, in a frame without a VLAN tag. In the
/// kernel it lies in a map, as a program's stack is small.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentHeader {
    /// The key of the packet that it belongs to: addresses, identification, protocol.
    pub key: FragmentKey,
    /// Length of the fragment's IP header and payload, in bytes.
    pub total_len: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Whether the packet is IPv6.
    pub is_v6: bool,
    /// Whether this is the first fragment.
    pub is_first: bool,
    /// Whether routers must not fragment it further; IPv6 routers never do.
    pub dont_fragment: bool,
}

impl FragmentHeader {
    /// The fragment's IP header, with the protocol of the whole packet.
    #[inline(always)]
    pub const fn header(&self) -> ip::Header {
        ip::Header {
            offset: eth::LEN,
            is_v6: self.is_v6,
            extension_len: if self.is_v6 { LEN_V6 } else { 0 },
            total_len: self.total_len,
            ttl: self.ttl,
            protocol: self.key.protocol,
            dont_fragment: self.dont_fragment,
            source: self.key.source,
            destination: self.key.destination,
        }
    }

    /// The first fragment as a packet, with the transport header of the whole packet; `None` if
    /// that header continues in the next fragment.
    #[inline(always)]
    pub fn segment<P: Packet>(&self, packet: &P) -> Option<Segment> {
        let ip = self.header();
        let transport = transport::parse(packet, &ip)?;
        Some(Segment { ip, transport })
    }

    /// Stores the fields of an IP header.
    #[inline(always)]
    const fn take(&mut self, ip: &ip::Header, ip_protocol: u8, id_be: [u8; 4], is_first: bool) {
        self.key = FragmentKey {
            source: ip.source,
            destination: ip.destination,
            id_be,
            protocol: ip_protocol,
            reserved: [0; 3],
        };
        self.total_len = ip.total_len;
        self.ttl = ip.ttl;
        self.is_v6 = ip.is_v6;
        self.is_first = is_first;
        self.dont_fragment = ip.dont_fragment;
    }
}

/// The ports of the packet whose first fragment this is.
#[inline(always)]
pub const fn ports(segment: &Segment, now_ns: u64) -> FragmentPorts {
    FragmentPorts {
        seen_ns: now_ns,
        source_port_be: segment.transport.source_port_be,
        destination_port_be: segment.transport.destination_port_be,
        reserved: 0,
    }
}

/// Parses the frame into `fragment`; `false` if it is no TCP or UDP packet.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, fragment: &mut FragmentHeader) -> bool {
    let is_read = match packet.read_bytes::<2>(eth::TYPE) {
        Some(eth::IPV4_BE) => parse_v4(packet, fragment),
        Some(eth::IPV6_BE) => parse_v6(packet, fragment),
        _ => false,
    };
    is_read && is_ours(fragment.key.protocol)
}

#[inline(always)]
fn parse_v4<P: Packet>(packet: &P, fragment: &mut FragmentHeader) -> bool {
    let Some(start) = packet.read_bytes::<8>(eth::LEN) else {
        return false;
    };
    let [i0, i1] = pair(&start, ipv4::ID);
    let Some(ip) = ipv4::parse_fragment(packet, eth::LEN) else {
        return false;
    };
    let is_first = u16::from_be_bytes(pair(&start, ipv4::FLAGS)) & ipv4::FRAGMENT_OFFSET == 0;
    fragment.take(&ip, ip.protocol, [0, 0, i0, i1], is_first);
    true
}

#[inline(always)]
fn parse_v6<P: Packet>(packet: &P, fragment: &mut FragmentHeader) -> bool {
    let Some(ip) = ipv6::parse(packet, eth::LEN) else {
        return false;
    };
    let Some([next, _, f0, f1, i0, i1, i2, i3]) = packet.read_bytes::<LEN_V6>(eth::LEN + ipv6::LEN) else {
        return false;
    };
    if ip.protocol != HEADER_V6 {
        return false;
    }
    let is_first = u16::from_be_bytes([f0, f1]) & OFFSET_V6 == 0;
    fragment.take(&ip, next, [i0, i1, i2, i3], is_first);
    true
}

/// Whether the frame, which is no whole TCP or UDP packet, is a fragment of one.
#[inline(always)]
pub fn is_fragment<P: Packet>(packet: &P) -> bool {
    match packet.read_bytes::<2>(eth::TYPE) {
        Some(eth::IPV4_BE) => packet.read_bytes::<10>(eth::LEN).is_some_and(|bytes| {
            let fragment = u16::from_be_bytes(pair(&bytes, ipv4::FLAGS));
            fragment & ipv4::FRAGMENT != 0 && is_ours(bytes[ipv4::PROTOCOL])
        }),
        Some(eth::IPV6_BE) => packet.read_bytes::<1>(eth::LEN + ipv6::NEXT_HEADER) == Some([HEADER_V6]),
        _ => false,
    }
}

#[inline(always)]
const fn is_ours(ip_protocol: u8) -> bool {
    ip_protocol == protocol::TCP || ip_protocol == protocol::UDP
}
