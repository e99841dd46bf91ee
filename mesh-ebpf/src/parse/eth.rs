//! Ethernet II headers.

/// Length of the header.
pub const LEN: usize = 14;
/// Offset of the destination address; the source address follows.
pub const DESTINATION: usize = 0;
/// Offset of the source address.
pub const SOURCE: usize = 6;
/// Offset of the EtherType.
pub const TYPE: usize = 12;
/// EtherType of IPv4, in network order.
pub const IPV4_BE: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6, in network order.
pub const IPV6_BE: [u8; 2] = [0x86, 0xdd];
