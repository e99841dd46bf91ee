//! TCP headers (RFC 9293).

use super::transport::Header;
use crate::abi::{Be16, protocol};
use crate::packet::Packet;

/// Length of a header without options.
pub const LEN: usize = 20;
/// Offset of the sequence number; the acknowledgement number follows.
pub const SEQUENCE: usize = 4;
/// Offset of the checksum.
pub const CHECKSUM: usize = 16;

/// Control bits of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset.
    pub const RST: u8 = 1 << 2;
    /// Data that the receiver is not to keep waiting for: the last segment of a write has it.
    pub const PSH: u8 = 1 << 3;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 1 << 4;

    /// Whether all that the segment is for is to carry on: data or an acknowledgement, and neither
    /// beginning nor end.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        self.0 & (Self::SYN | Self::RST | Self::FIN | Self::ACK) == Self::ACK
    }

    /// Whether any of these bits is set.
    #[inline(always)]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Whether this segment asks for a new connection.
    #[inline(always)]
    pub const fn is_opening(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }
}

/// The header at `offset`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    let bytes = packet.read_bytes::<LEN>(offset)?;
    let len = usize::from(bytes[12] >> 4) * 4;
    if len < LEN {
        return None;
    }
    Some(Header {
        offset,
        protocol: protocol::TCP,
        source_port_be: Be16([bytes[0], bytes[1]]),
        destination_port_be: Be16([bytes[2], bytes[3]]),
        len,
        flags: Flags(bytes[13]),
        sequence: u16::from_be_bytes([bytes[4], bytes[5]]),
        acknowledged: u16::from_be_bytes([bytes[8], bytes[9]]),
    })
}
