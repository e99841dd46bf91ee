//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).

use crate::abi::Address;

/// The one's-complement sum of 16-bit words in network order, unfolded.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut total = 0;
    let mut at = 0;
    while at + 1 < N {
        total += u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        at += 2;
    }
    if at < N { total + (u32::from(bytes[at]) << 8) } else { total }
}

/// Folds the carries of a sum of fewer than 2¹⁶ words back in.
#[inline(always)]
pub fn fold(total: u32) -> u16 {
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    (total & 0xffff) as u16
}

/// The checksum after the bytes `old`, at an even offset of what it covers, became `new`: RFC 1624,
/// equation 3.
#[inline(always)]
pub fn replace<const N: usize>(checksum: [u8; 2], old: &[u8; N], new: &[u8; N]) -> [u8; 2] {
    let words = N.div_ceil(2) as u32;
    // The complement of each old word: 0xffff − word.
    let old_complement = 0xffff * words - sum(old);
    let total = u32::from(!u16::from_be_bytes(checksum)) + old_complement + sum(new);
    (!fold(total)).to_be_bytes()
}

/// [`replace`] for a checksum that may be absent: 0 means "none" and stays 0, and a computed 0 is
/// written as 0xffff, which is equivalent.
#[inline(always)]
pub fn replace_optional<const N: usize>(
    checksum: [u8; 2],
    is_optional: bool,
    old: &[u8; N],
    new: &[u8; N],
) -> [u8; 2] {
    if !is_optional {
        return replace(checksum, old, new);
    }
    if checksum == [0; 2] {
        return checksum;
    }
    match replace(checksum, old, new) {
        [0, 0] => [0xff; 2],
        patched => patched,
    }
}

/// The sum over the TCP, UDP or ICMPv6 pseudo header: addresses, protocol, length of header and
/// data. The prefix of v4-mapped addresses adds a multiple of 0xffff, which changes nothing.
#[inline(always)]
pub fn pseudo_header(source: &Address, destination: &Address, protocol: u8, len: u32) -> u32 {
    sum(&source.0) + sum(&destination.0) + u32::from(protocol) + len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Computes the checksum in another way than the code above: 64-bit accumulation, folded until
    /// nothing is left.
    fn oracle(bytes: &[u8]) -> u16 {
        let mut total: u64 = 0;
        for pair in bytes.chunks(2) {
            total += u64::from(pair[0]) * 256 + u64::from(pair.get(1).copied().unwrap_or(0));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        !(total as u16)
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2, "RFC 1071 section 3");
    }

    proptest! {
        #[test]
        fn sum_is_the_full_checksum(bytes: [u8; 20]) {
            prop_assert_eq!(!fold(sum(&bytes)), oracle(&bytes));
        }

        #[test]
        fn odd_length_is_padded_with_zero(bytes: [u8; 7]) {
            prop_assert_eq!(!fold(sum(&bytes)), oracle(&bytes));
        }

        #[test]
        fn replacing_equals_recomputing(mut bytes: [u8; 32], new: [u8; 4], word in 0usize..7) {
            // A packet that is all zeros has the checksum 0xffff, which incremental updates cannot
            // tell from 0.
            prop_assume!(bytes[4 * 7..].iter().any(|byte| *byte != 0));
            let before = oracle(&bytes).to_be_bytes();
            let at = word * 4;
            let old = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            bytes[at..at + 4].copy_from_slice(&new);
            let seen = u16::from_be_bytes(replace(before, &old, &new));
            prop_assert_eq!(seen, oracle(&bytes), "patched against recomputed");
        }
    }
}
