//! UDP headers (RFC 768).

use super::pair;
use super::tcp::Flags;
use super::transport::{DESTINATION_PORT, Header, SOURCE_PORT};
use crate::abi::{Be16, protocol};
use crate::packet::Packet;

/// Length of the header.
pub const LEN: usize = 8;
/// Offset of the checksum; a checksum of 0 means "none".
pub const CHECKSUM: usize = 6;

/// Parses the header at `offset`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    let bytes = packet.read_bytes::<LEN>(offset)?;
    Some(Header {
        offset,
        protocol: protocol::UDP,
        source_port_be: Be16(pair(&bytes, SOURCE_PORT)),
        destination_port_be: Be16(pair(&bytes, DESTINATION_PORT)),
        len: LEN,
        flags: Flags::NONE,
        sequence: 0,
        acknowledged: 0,
    })
}
