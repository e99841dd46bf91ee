//! ICMP errors (RFC 792, RFC 4443): what they say, and the packet that they quote.

/// Length of the header of an error.
pub const LEN: usize = 8;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// Protocol number of ICMP for IPv4.
pub const PROTOCOL_V4: u8 = 1;
/// Protocol number of ICMP for IPv6.
pub const PROTOCOL_V6: u8 = 58;

/// What an error says, in both versions: type, code, and the four bytes that follow the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// For IPv4.
    pub v4: [u8; 6],
    /// For IPv6.
    pub v6: [u8; 6],
}

/// Nobody listens on that port.
pub const PORT_UNREACHABLE: Kind = Kind { v4: [3, 3, 0, 0, 0, 0], v6: [1, 4, 0, 0, 0, 0] };
