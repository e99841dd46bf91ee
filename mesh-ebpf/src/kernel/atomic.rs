//! Atomic read-modify-write on map values. The compiler's atomics for this target stop at loads and
//! stores, so these are the instructions themselves (`-C target-cpu=v3`).

use core::arch::asm;

/// Declares a function that executes one atomic instruction on a word in memory and returns the
/// word's value before.
macro_rules! fetch {
    ($(#[$doc:meta])+ $view:vis $name:ident, $word:ty, $register:ident, $instruction:literal) => {
        $(#[$doc])+
        ///
        /// # Safety
        /// `word` points into a live map value, aligned to its size.
        #[inline(always)]
        $view unsafe fn $name(word: *mut $word, operand: $word) -> $word {
            let mut value = operand;
            // SAFETY: the instruction touches the word and the register only.
            unsafe {
                asm!($instruction, value = inout($register) value, word = in(reg) word);
            }
            value
        }
    };
}

fetch! {
    /// Adds to `word`; returns its value before.
    pub(super) fetch_add, u64, reg, "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})"
}
fetch! {
    /// Sets bits in `word`; returns its value before.
    pub(crate) fetch_or, u32, wreg, "{value} = atomic_fetch_or((u32 *)({word} + 0), {value})"
}
fetch! {
    /// Clears all bits of `word` but these; returns its value before.
    pub(crate) fetch_and, u32, wreg, "{value} = atomic_fetch_and((u32 *)({word} + 0), {value})"
}
