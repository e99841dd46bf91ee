//! Adds durations to this CPU's histograms.

use core::arch::asm;

use super::maps;
use crate::abi::{BUCKETS, Histogram, Timed};

/// The number of words of a histogram: the sum, then the buckets.
const WORDS: usize = BUCKETS + 1;

const _: () = assert!(WORDS.is_power_of_two() && size_of::<Histogram>() == WORDS * size_of::<u64>());

/// Adds a duration, if userspace has created the histogram for it.
#[inline(always)]
pub(super) fn keep(timed: Timed, service_index: u32, duration_ns: u64) {
    let Some(histogram) = maps::DURATIONS.get_ptr_mut(timed.key(service_index)) else { return };
    let words = histogram.cast::<u64>();
    let bucket = masked(1 + Histogram::bucket(duration_ns));
    // SAFETY: a live per-CPU map value of that many words; nothing else on this CPU runs between
    // load and store that uses it.
    unsafe {
        *words = (*words).wrapping_add(duration_ns);
        *words.add(bucket) += 1;
    }
}

/// Masks the word's index, which is below [`WORDS`] anyway. The compiler knows that and would drop
/// the mask; the verifier doesn't know it and needs the mask.
#[inline(always)]
fn masked(mut word: usize) -> usize {
    // SAFETY: changes the named register only.
    unsafe {
        asm!(
            "{word} &= {mask}",
            word = inout(reg) word,
            mask = const WORDS - 1,
            options(pure, nomem, nostack),
        );
    }
    word
}
