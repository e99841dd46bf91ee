//! TCP and UDP headers, reduced to the fields that decisions need.

use super::tcp::Flags;
use super::{ip, tcp, udp};
use crate::abi::{Be16, protocol};
use crate::packet::{Checksum, Packet};

/// Offset of the source port, in TCP and UDP headers.
pub const SOURCE_PORT: usize = 0;
/// Offset of the destination port, in TCP and UDP headers.
pub const DESTINATION_PORT: usize = 2;

/// The fields of a TCP or UDP header that decisions need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset of the header in the frame.
    pub offset: usize,
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// Source port.
    pub source_port_be: Be16,
    /// Destination port.
    pub destination_port_be: Be16,
    /// Length of the header, with options: 8, or 20..=60.
    pub len: usize,
    /// TCP only: control bits.
    pub flags: Flags,
    /// TCP only: the upper half of the sequence number.
    pub sequence: u16,
    /// TCP only: the upper half of the acknowledgement number.
    pub acknowledged: u16,
}

impl Header {
    /// Whether this is a UDP header.
    #[inline(always)]
    pub const fn is_udp(&self) -> bool {
        self.protocol == protocol::UDP
    }

    /// Where the header's checksum is.
    #[inline(always)]
    pub const fn checksum(&self) -> Checksum {
        let at = if self.is_udp() { udp::CHECKSUM } else { tcp::CHECKSUM };
        Checksum { offset: self.offset + at, is_optional: self.is_udp() }
    }
}

/// Parses the header that follows `ip`; `None` for other protocols, and if the packet ends before
/// it.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, ip: &ip::Header) -> Option<Header> {
    let header = match ip.protocol {
        protocol::TCP => tcp::parse(packet, ip.payload())?,
        protocol::UDP => udp::parse(packet, ip.payload())?,
        _ => return None,
    };
    (ip.total_len as usize >= ip.header_len() + header.len).then_some(header)
}
