//! IP headers of packets that this node creates.

use crate::abi::Address;
use crate::csum;
use crate::parse::{ipv4, ipv6};

/// TTL or hop limit of these packets.
const TTL: u8 = 64;
/// Flags and fragment offset of these packets: "don't fragment", no offset.
const DONT_FRAGMENT: [u8; 2] = [0x40, 0x00];

/// Builds a complete IPv4 header.
#[inline(always)]
pub(super) fn ipv4_header(
    total_len: u16,
    protocol: u8,
    source: [u8; 4],
    destination: [u8; 4],
) -> [u8; ipv4::LEN] {
    let ([l0, l1], [f0, f1]) = (total_len.to_be_bytes(), DONT_FRAGMENT);
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (source, destination);
    let mut header =
        [ipv4::VERSION_IHL, 0, l0, l1, 0, 0, f0, f1, TTL, protocol, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    let [c0, c1] = (!csum::fold(csum::sum(&header))).to_be_bytes();
    header[ipv4::CHECKSUM] = c0;
    header[ipv4::CHECKSUM + 1] = c1;
    header
}

/// Builds a complete IPv6 header.
#[inline(always)]
pub(super) fn ipv6_header(
    payload_len: u16,
    protocol: u8,
    source: &Address,
    destination: &Address,
) -> [u8; ipv6::LEN] {
    let [l0, l1] = payload_len.to_be_bytes();
    let mut header = [0; ipv6::LEN];
    header[..ipv6::SOURCE].copy_from_slice(&[0x60, 0, 0, 0, l0, l1, protocol, TTL]);
    header[ipv6::SOURCE..ipv6::DESTINATION].copy_from_slice(&source.0);
    header[ipv6::DESTINATION..].copy_from_slice(&destination.0);
    header
}
