//! Fragments (RFC 791, RFC 8200 section 4.5).

/// Number of IPv6's fragment header.
pub const HEADER_V6: u8 = 44;
/// Length of IPv6's fragment header.
pub const LEN_V6: usize = 8;
/// Bits of the offset in IPv6's fragment header.
pub const OFFSET_V6: u16 = 0xfff8;
