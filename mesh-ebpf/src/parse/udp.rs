//! UDP headers (RFC 768).

use super::tcp::Flags;
use super::transport::Header;
use crate::abi::{Be16, protocol};
use crate::packet::Packet;

/// Length of the header.
pub const LEN: usize = 8;
/// Offset of the checksum; 0 is none.
pub const CHECKSUM: usize = 6;

/// The header at `offset`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    let bytes = packet.read_bytes::<LEN>(offset)?;
    Some(Header {
        offset,
        protocol: protocol::UDP,
        source_port_be: Be16([bytes[0], bytes[1]]),
        destination_port_be: Be16([bytes[2], bytes[3]]),
        len: LEN,
        flags: Flags::NONE,
        sequence: 0,
        acknowledged: 0,
    })
}
