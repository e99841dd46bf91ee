//! Atomic read-modify-write on map values. The compiler's atomics stop at loads and stores for this target, so these
//! are the instructions themselves (`-C target-cpu=v3`).

use core::arch::asm;

/// A function that carries out one atomic instruction on a word in memory and returns what the word was.
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
    /// Adds to `word`; returns what it was.
    pub(super) fetch_add, u64, reg, "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})"
}
fetch! {
    /// Sets bits in `word`; returns what it was.
    pub(crate) fetch_or, u32, wreg, "{value} = atomic_fetch_or((u32 *)({word} + 0), {value})"
}
fetch! {
    /// Keeps of `word` only these bits; returns what it was.
    pub(crate) fetch_and, u32, wreg, "{value} = atomic_fetch_and((u32 *)({word} + 0), {value})"
}
