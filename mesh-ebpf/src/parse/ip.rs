//! IP headers of either version, reduced to the fields that decisions need.

use super::{eth, fragment, ipv4, ipv6};
use crate::abi::Address;
use crate::packet::Packet;

/// The fields of an IP header that decisions need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Offset of the header in the frame.
    pub offset: usize,
    /// Whether the packet is IPv6.
    pub is_v6: bool,
    /// Length of the extension header that follows: IPv6's fragment header, or 0.
    pub extension_len: usize,
    /// Length of header and payload, in bytes; at least that of the header.
    pub total_len: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// IP protocol number of the payload.
    pub protocol: u8,
    /// Whether routers must not fragment the packet; IPv6 routers never do.
    pub dont_fragment: bool,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
}

impl Header {
    /// Length of the header without the extension.
    #[inline(always)]
    pub const fn base_len(&self) -> usize {
        if self.is_v6 { ipv6::LEN } else { ipv4::LEN }
    }

    /// Length of the header with the extension.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        self.base_len() + self.extension_len
    }

    /// The next-header number that the header itself holds: that of the extension, or the protocol.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        if self.extension_len == 0 { self.protocol } else { fragment::HEADER_V6 }
    }

    /// Offset of the payload in the frame.
    #[inline(always)]
    pub const fn payload(&self) -> usize {
        self.offset + self.header_len()
    }
}

/// Parses the IP header of the frame at `offset`; `None` unless it is a plain one.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    match packet.read_bytes::<2>(offset + eth::TYPE)? {
        eth::IPV4_BE => ipv4::parse(packet, offset + eth::LEN),
        eth::IPV6_BE => ipv6::parse(packet, offset + eth::LEN),
        _ => None,
    }
}
