//! The word of a cell, and the atomic operations on it: BPF instructions in the kernel, the
//! processor's elsewhere.
//!
//! | bits | meaning |
//! |---|---|
//! | 0–14 | events of the flow that stands in the cell; none: the cell is free |
//! | 15 | claimed: one CPU is changing what the cell holds |
//! | 17–31 | where flows stand whose home this cell is: bit 16 + n for the nth cell after it |

use core::ptr::NonNull;

use crate::abi::{FlowCell, flow_event};

/// The bits that are events.
pub(super) const EVENTS: u32 = flow_event::ALL;
/// The bit by which a CPU claims the cell: it is changing what the cell holds.
pub(super) const CLAIMED: u32 = 1 << 15;

/// The bit of a home's word that says that a flow stands `distance` cells after it.
#[inline(always)]
pub(super) const fn hop(distance: u32) -> u32 {
    1 << 16 << distance
}

/// The hops in a home's word: bit n for the cell n + 1 after it.
#[inline(always)]
pub(super) const fn hops(word: u32) -> u32 {
    word >> 17
}

/// Whether a flow stands in the cell with this word.
#[inline(always)]
pub(super) const fn is_taken(word: u32) -> bool {
    word & EVENTS != 0
}

/// A pointer to the word of a cell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word(*mut u32);

impl Word {
    /// The word of `cell`, which must be one that [`Cells`](super::Cells) returned.
    #[inline(always)]
    pub(super) const fn of(cell: NonNull<FlowCell>) -> Self {
        // SAFETY: the field lies in the cell.
        Self(unsafe { &raw mut (*cell.as_ptr()).flow.events })
    }

    #[inline(always)]
    pub(super) fn get(self) -> u32 {
        // SAFETY: a live cell's word, aligned; others write it whole.
        unsafe { self.0.read_volatile() }
    }

    /// Sets bits; returns the word before.
    #[inline(always)]
    pub(super) fn set(self, bits: u32) -> u32 {
        // SAFETY: a live cell's word, aligned.
        unsafe { atomic::fetch_or(self.0, bits) }
    }

    /// Clears bits; returns the word before.
    #[inline(always)]
    pub(super) fn clear(self, bits: u32) -> u32 {
        // SAFETY: a live cell's word, aligned.
        unsafe { atomic::fetch_and(self.0, !bits) }
    }
}

#[cfg(target_arch = "bpf")]
use crate::kernel::atomic;

#[cfg(not(target_arch = "bpf"))]
mod atomic {
    use core::sync::atomic::{AtomicU32, Ordering};

    pub(super) unsafe fn fetch_or(field: *mut u32, bits: u32) -> u32 {
        // SAFETY: as the caller promises; the kernel's programs change the word by atomic
        // instructions only, too.
        unsafe { AtomicU32::from_ptr(field) }.fetch_or(bits, Ordering::SeqCst)
    }

    pub(super) unsafe fn fetch_and(field: *mut u32, bits: u32) -> u32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(field) }.fetch_and(bits, Ordering::SeqCst)
    }
}
