//! Cuts packets of test data into fragments.

use std::vec::Vec;

use crate::csum;
use crate::parse::{eth, fragment, ipv4, ipv6};

/// Identification of the packets that are cut here, in IPv6's form.
pub const ID: [u8; 4] = [0, 0, 0xab, 0xcd];

/// The plain IP packet in `frame` as fragments with up to `size` bytes of its payload each.
///
/// # Panics
/// If `size` isn't a multiple of 8, or the frame is no IP packet: test data is wrong.
pub fn fragments_of(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    assert_eq!(size % 8, 0, "offsets count in eights");
    let is_v6 = frame[12..14] == eth::IPV6_BE;
    let payload = eth::LEN + if is_v6 { ipv6::LEN } else { ipv4::LEN };
    let pieces = frame[payload..].chunks(size).enumerate();
    pieces
        .map(|(number, piece)| {
            let (at, is_last) = (number * size, payload + number * size + piece.len() == frame.len());
            if is_v6 {
                fragment_v6(&frame[..payload], at, is_last, piece)
            } else {
                fragment_v4(&frame[..payload], at, is_last, piece)
            }
        })
        .collect()
}

fn fragment_v4(headers: &[u8], at: usize, is_last: bool, piece: &[u8]) -> Vec<u8> {
    let mut frame = headers.to_vec();
    let ip = &mut frame[eth::LEN..];
    let len = u16::try_from(ipv4::LEN + piece.len()).expect("short");
    let offset = u16::try_from(at / 8).expect("short") | if is_last { 0 } else { 0x2000 };
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    ip[4..6].copy_from_slice(&ID[2..]);
    ip[6..8].copy_from_slice(&offset.to_be_bytes());
    ip[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].fill(0);
    let header = <[u8; ipv4::LEN]>::try_from(&ip[..ipv4::LEN]).expect("a whole header");
    let checksum = (!csum::fold(csum::sum(&header))).to_be_bytes();
    ip[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&checksum);
    frame.extend_from_slice(piece);
    frame
}

fn fragment_v6(headers: &[u8], at: usize, is_last: bool, piece: &[u8]) -> Vec<u8> {
    let mut frame = headers.to_vec();
    let ip = &mut frame[eth::LEN..];
    let len = u16::try_from(fragment::LEN_V6 + piece.len()).expect("short");
    let protocol = ip[ipv6::NEXT_HEADER];
    ip[4..6].copy_from_slice(&len.to_be_bytes());
    ip[ipv6::NEXT_HEADER] = fragment::HEADER_V6;
    let [high, low] = (u16::try_from(at).expect("short") | u16::from(!is_last)).to_be_bytes();
    frame.extend_from_slice(&[protocol, 0, high, low]);
    frame.extend_from_slice(&ID);
    frame.extend_from_slice(piece);
    frame
}
