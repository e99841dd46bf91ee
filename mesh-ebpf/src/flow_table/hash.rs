//! The keyed hash by which a flow finds its home cell.

use crate::abi::FlowKey;

/// The factors that the words of a key are multiplied by, derived from a table's seed. Each factor
/// is mixed from the seed separately (SplitMix64; Steele, Lea and Flood, 2014): if one were a
/// rotation of another, keys whose words make up for the shift would share a home under every seed.
pub const fn factors(seed: u64) -> [u64; 3] {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    [
        mixed(seed.wrapping_add(STEP)) | 1,
        mixed(seed.wrapping_add(STEP.wrapping_mul(2))) | 1,
        mixed(seed.wrapping_add(STEP.wrapping_mul(3))) | 1,
    ]
}

/// The finalizer of SplitMix64: a permutation in which each bit depends on all bits of `number`.
const fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// A hash of the key that is the same as long as the secret is, whatever the table holds. Without
/// the secret nobody can choose keys with equal hashes.
#[inline(always)]
pub const fn keyed_hash(key: &FlowKey, factors: [u64; 3]) -> u32 {
    // The factor is that of MurmurHash3's finalizer, so that neighbours in the table get different
    // numbers.
    (hash(key, factors).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 32) as u32
}

/// The sum of the key's words times the table's secret factors (multilinear hashing; Carter and
/// Wegman, 1979). The factors are derived from one seed of 64 bits and are odd, so the proof for
/// independent factors holds nearly, not strictly.
#[inline(always)]
pub(super) const fn hash(key: &FlowKey, factors: [u64; 3]) -> u64 {
    let words = key.words();
    words[0]
        .wrapping_mul(factors[0])
        .wrapping_add(words[1].wrapping_mul(factors[1]))
        .wrapping_add(words[2].wrapping_mul(factors[2]))
}
