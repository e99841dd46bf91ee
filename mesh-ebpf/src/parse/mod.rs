//! Parsing: from bytes to the few fields that decisions need. Never touches maps, never changes a
//! packet.
//!
//! Parsers return `None` for everything but plain IP over Ethernet (VLAN tags, IP options,
//! extension headers, fragments, truncated headers), and the pipeline leaves such packets to the
//! host stack.

pub mod arp;
pub mod eth;
pub mod fragment;
pub mod icmp;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod tcp;
pub mod transport;
pub mod udp;
pub mod vxlan;

use crate::packet::Packet;

/// The two bytes at offset `at` of a header.
#[inline(always)]
pub(crate) const fn pair<const N: usize>(header: &[u8; N], at: usize) -> [u8; 2] {
    [header[at], header[at + 1]]
}

/// The four bytes at offset `at` of a header.
#[inline(always)]
pub(crate) const fn quad<const N: usize>(header: &[u8; N], at: usize) -> [u8; 4] {
    [header[at], header[at + 1], header[at + 2], header[at + 3]]
}

/// A whole TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The packet's IP header.
    pub ip: ip::Header,
    /// The packet's TCP or UDP header.
    pub transport: transport::Header,
}

impl Segment {
    /// Parses the packet whose Ethernet header is at `offset`.
    #[inline(always)]
    pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Self> {
        let ip = ip::parse(packet, offset)?;
        let transport = transport::parse(packet, &ip)?;
        Some(Self { ip, transport })
    }

    /// Whether the packet is UDP.
    #[inline(always)]
    pub const fn is_udp(&self) -> bool {
        self.transport.is_udp()
    }

    /// Whether a flow may begin with this packet.
    #[inline(always)]
    pub const fn may_open(&self) -> bool {
        self.is_udp() || self.transport.flags.is_opening()
    }

    /// Length of the IP and transport headers, in bytes.
    #[inline(always)]
    pub const fn headers_len(&self) -> u32 {
        (self.ip.header_len() + self.transport.len) as u32
    }

    /// Length of the payload, in bytes.
    #[inline(always)]
    pub const fn payload_len(&self) -> u32 {
        self.ip.total_len.saturating_sub(self.headers_len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Frame, TcpBuilder};

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), offset in 0usize..260) {
            let frame = Frame::new(bytes);
            let _ = Segment::parse(&frame, offset);
            let _ = vxlan::parse(&frame, offset);
        }

        #[test]
        fn mangled_tcp_never_panics(at in 0usize..60, value: u8, len in 0usize..80) {
            let mut bytes = TcpBuilder::new("10.77.0.1:40000", "10.77.0.11:80").syn().mss(1460).build();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(len);
            if let Some(segment) = Segment::parse(&Frame::new(bytes), 0) {
                let headers = ipv4::LEN + segment.transport.len;
                prop_assert!(segment.ip.total_len as usize >= headers);
            }
        }
    }

    #[test]
    fn only_plain_packets_are_taken() {
        let plain = TcpBuilder::new("10.77.0.1:40000", "10.77.0.11:80").syn().build();
        assert!(Segment::parse(&Frame::new(plain.clone()), 0).is_some(), "plain SYN");
        let changed = |at: usize, value: u8| {
            let mut bytes = plain.clone();
            bytes[at] = value;
            Segment::parse(&Frame::new(bytes), 0)
        };
        assert_eq!(changed(12, 0x81), None, "VLAN tag");
        assert_eq!(changed(14, 0x46), None, "IP options");
        assert_eq!(changed(14, 0x65), None, "version 6");
        assert_eq!(changed(20, 0x20), None, "first fragment");
        assert_eq!(changed(21, 0x01), None, "later fragment");
        assert!(changed(20, 0x40).is_some(), "don't fragment");
        assert_eq!(changed(46, 0x40), None, "TCP header shorter than 20 bytes");
        assert_eq!(changed(46, 0xf0), None, "TCP header longer than the packet");
        assert_eq!(changed(17, 19), None, "total length shorter than the header");
    }
}
