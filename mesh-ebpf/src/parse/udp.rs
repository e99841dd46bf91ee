//! UDP headers (RFC 768).

use crate::abi::Be16;
use crate::packet::Packet;

/// Length of the header.
pub const LEN: usize = 8;

/// The fields of a header that decisions need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the header starts.
    pub offset: usize,
    /// Destination port.
    pub destination_port_be: Be16,
}

/// The header at `offset`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    let bytes = packet.load::<LEN>(offset)?;
    Some(Header { offset, destination_port_be: Be16([bytes[2], bytes[3]]) })
}
