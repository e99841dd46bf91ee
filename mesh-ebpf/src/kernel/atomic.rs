//! Atomic read-modify-write on map values. The compiler's atomics stop at loads and stores for this target, so these
//! are the instructions themselves (`-C target-cpu=v3`).

use core::arch::asm;

/// Adds to `counter`; returns what it was.
///
/// # Safety
/// `counter` points into a live map value, 8-byte aligned.
#[inline(always)]
pub(super) unsafe fn fetch_add(counter: *mut u64, count: u64) -> u64 {
    let mut value = count;
    // SAFETY: the instruction touches the counter and the register only.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})", value = inout(reg) value, counter = in(reg) counter);
    }
    value
}

/// Sets bits in `field`; returns what it was.
///
/// # Safety
/// `field` points into a live map value, 4-byte aligned.
#[inline(always)]
pub(crate) unsafe fn fetch_or(field: *mut u32, bits: u32) -> u32 {
    let mut value = bits;
    // SAFETY: the instruction touches the field and the register only.
    unsafe {
        asm!("{value} = atomic_fetch_or((u32 *)({field} + 0), {value})", value = inout(wreg) value, field = in(reg) field);
    }
    value
}

/// Keeps of `field` only these bits; returns what it was.
///
/// # Safety
/// `field` points into a live map value, 4-byte aligned.
#[inline(always)]
pub(crate) unsafe fn fetch_and(field: *mut u32, bits: u32) -> u32 {
    let mut value = bits;
    // SAFETY: the instruction touches the field and the register only.
    unsafe {
        asm!("{value} = atomic_fetch_and((u32 *)({field} + 0), {value})", value = inout(wreg) value, field = in(reg) field);
    }
    value
}

/// Turns bits of `field` over; returns what it was.
///
/// # Safety
/// `field` points into a live map value, 4-byte aligned.
#[inline(always)]
pub(crate) unsafe fn fetch_xor(field: *mut u32, bits: u32) -> u32 {
    let mut value = bits;
    // SAFETY: the instruction touches the field and the register only.
    unsafe {
        asm!("{value} = atomic_fetch_xor((u32 *)({field} + 0), {value})", value = inout(wreg) value, field = in(reg) field);
    }
    value
}
