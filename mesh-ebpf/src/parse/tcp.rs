//! TCP headers (RFC 9293).

use super::pair;
use super::transport::{DESTINATION_PORT, Header, SOURCE_PORT};
use crate::abi::{Be16, protocol};
use crate::packet::Packet;

/// Length of a header without options.
pub const LEN: usize = 20;
/// Offset of the sequence number; the acknowledgement number follows.
pub const SEQUENCE: usize = 4;
/// Offset of the acknowledgement number.
pub const ACKNOWLEDGED: usize = 8;
/// Offset of the header's length, in words, in the upper half of the byte.
pub const DATA_OFFSET: usize = 12;
/// Offset of the control bits.
pub const FLAGS: usize = 13;
/// Offset of the window.
pub const WINDOW: usize = 14;
/// Offset of the checksum.
pub const CHECKSUM: usize = 16;
/// The option that ends the list of options; it has no length.
pub const OPTION_END: u8 = 0;
/// The option that fills a byte; it has no length.
pub const OPTION_NOP: u8 = 1;
/// The option that announces the maximum segment size (MSS).
pub const OPTION_MSS: u8 = 2;
/// Length of the MSS option.
pub const OPTION_MSS_LEN: u8 = 4;

/// Control bits (flags) of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The sender sends no more data.
    pub const FIN: u8 = 1;
    /// The segment synchronises sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// The connection is reset.
    pub const RST: u8 = 1 << 2;
    /// The receiver should not hold the data back: the last segment of a write has this flag.
    pub const PSH: u8 = 1 << 3;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 1 << 4;

    /// Whether the segment only carries data or an acknowledgement: it neither begins nor ends the
    /// connection.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        self.0 & (Self::SYN | Self::RST | Self::FIN | Self::ACK) == Self::ACK
    }

    /// Whether any of these bits is set.
    #[inline(always)]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Whether the segment asks for a new connection.
    #[inline(always)]
    pub const fn is_opening(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }
}

/// Parses the header at `offset`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    let bytes = packet.read_bytes::<LEN>(offset)?;
    let len = usize::from(bytes[DATA_OFFSET] >> 4) * 4;
    if len < LEN {
        return None;
    }
    Some(Header {
        offset,
        protocol: protocol::TCP,
        source_port_be: Be16(pair(&bytes, SOURCE_PORT)),
        destination_port_be: Be16(pair(&bytes, DESTINATION_PORT)),
        len,
        flags: Flags(bytes[FLAGS]),
        sequence: u16::from_be_bytes(pair(&bytes, SEQUENCE)),
        acknowledged: u16::from_be_bytes(pair(&bytes, ACKNOWLEDGED)),
    })
}
