//! What decisions need of a TCP or UDP header.

use super::tcp::Flags;
use super::{ip, tcp, udp};
use crate::abi::{Be16, protocol};
use crate::packet::{Checksum, Packet};

/// The fields of a header that decisions need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the header starts.
    pub offset: usize,
    /// Protocol number, that of TCP or UDP.
    pub protocol: u8,
    /// Source port.
    pub source_port_be: Be16,
    /// Destination port.
    pub destination_port_be: Be16,
    /// Length of the header, with options: 8, or 20..=60.
    pub len: usize,
    /// TCP: control bits.
    pub flags: Flags,
    /// TCP: the upper half of the sequence number.
    pub sequence: u16,
    /// TCP: the upper half of the acknowledgement number.
    pub acknowledged: u16,
}

impl Header {
    /// Whether it is one of UDP.
    #[inline(always)]
    pub const fn is_udp(&self) -> bool {
        self.protocol == protocol::UDP
    }

    /// Where its checksum is.
    #[inline(always)]
    pub const fn checksum(&self) -> Checksum {
        let at = if self.is_udp() { udp::CHECKSUM } else { tcp::CHECKSUM };
        Checksum { offset: self.offset + at, is_optional: self.is_udp() }
    }
}

/// The header that follows `ip`; `None` for other protocols, and if the packet ends before it.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, ip: &ip::Header) -> Option<Header> {
    let header = match ip.protocol {
        protocol::TCP => tcp::parse(packet, ip.payload())?,
        protocol::UDP => udp::parse(packet, ip.payload())?,
        _ => return None,
    };
    (ip.total_len as usize >= ip.header_len() + header.len).then_some(header)
}
