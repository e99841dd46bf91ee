//! From keys to numbers: secret factors out of a table's seed, and what a key is with them. Pure arithmetic, the same in
//! the kernel and outside.

use crate::abi::FlowKey;

/// What the words of a key are multiplied by, made of a table's seed. Each factor is mixed from the seed by itself (SplitMix64; Steele, Lea and
/// Flood, 2014): were one the rotation of another, keys whose words make up for the shift would share a home under every seed.
pub const fn factors(seed: u64) -> [u64; 3] {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    [
        mixed(seed.wrapping_add(STEP)) | 1,
        mixed(seed.wrapping_add(STEP.wrapping_mul(2))) | 1,
        mixed(seed.wrapping_add(STEP.wrapping_mul(3))) | 1,
    ]
}

/// A number in whose place each bit depends on all bits of `number`.
const fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// A number that a key has for as long as the secret is the same, whatever stands in the table. Nobody without the secret can choose keys
/// with the same number.
#[inline(always)]
pub const fn keyed_hash(key: &FlowKey, factors: [u64; 3]) -> u32 {
    // The finalizer's factor of MurmurHash3, so that neighbours in the table differ.
    (hash(key, factors).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 32) as u32
}

/// The words of a key times the table's secret factors, added up (multilinear hashing; Carter and Wegman, 1979). The factors come out of a seed
/// of 64 bits and are odd, so the proof for independent ones holds nearly, not strictly.
#[inline(always)]
pub(super) const fn hash(key: &FlowKey, factors: [u64; 3]) -> u64 {
    let words = key.words();
    words[0]
        .wrapping_mul(factors[0])
        .wrapping_add(words[1].wrapping_mul(factors[1]))
        .wrapping_add(words[2].wrapping_mul(factors[2]))
}
