//! What decisions need of an IP header, of either version.

use super::{eth, fragment, ipv4, ipv6};
use crate::abi::Address;
use crate::packet::Packet;

/// The fields of a header that decisions need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Where the header starts.
    pub offset: usize,
    /// Whether it is one of IPv6.
    pub is_v6: bool,
    /// Length of the extension header that follows it: that of a fragment of IPv6, or 0.
    pub extension_len: usize,
    /// Length of header and payload, in bytes; at least that of the header.
    pub total_len: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Protocol number.
    pub protocol: u8,
    /// Whether routers must not fragment the packet; those of IPv6 never do.
    pub dont_fragment: bool,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
}

impl Header {
    /// Length of the header by itself.
    #[inline(always)]
    pub const fn base_len(&self) -> usize {
        if self.is_v6 { ipv6::LEN } else { ipv4::LEN }
    }

    /// Length of the header, with the extension.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        self.base_len() + self.extension_len
    }

    /// The number in the header of what follows it: the protocol, or the extension.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        if self.extension_len == 0 { self.protocol } else { fragment::HEADER_V6 }
    }

    /// Where the payload starts.
    #[inline(always)]
    pub const fn payload(&self) -> usize {
        self.offset + self.header_len()
    }
}

/// The IP header of the frame at `offset`; `None` for anything but a plain one.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    match packet.read_bytes::<2>(offset + eth::TYPE)? {
        eth::IPV4_BE => ipv4::parse(packet, offset + eth::LEN),
        eth::IPV6_BE => ipv6::parse(packet, offset + eth::LEN),
        _ => None,
    }
}
