//! Keeps the heap of a daemon that runs for months as small as what it uses.
//!
//! glibc has a heap for each of up to eight threads per CPU. It raises the size from which it gives
//! freed memory back to the kernel with every large block that is freed, up to 64 MiB for each
//! heap, and `malloc_trim` leaves the end of every heap but the first as it is. An agent that
//! joined clusters thirty times held 119 MB of free memory that way, for 3 MB in use.

/// The size from which a block has a mapping of its own, which goes back when it is freed; and the
/// free bytes at the end of a heap from which they go back. glibc's initial values; setting them
/// keeps glibc from raising them (mallopt(3)).
#[cfg(target_env = "gnu")]
const THRESHOLD: libc::c_int = 128 * 1024;

/// Makes all threads share one heap, whose free end [`trim`] gives back, too. For the start of a
/// process whose hot paths don't allocate: threads that allocate much at the same time wait for
/// each other.
#[cfg(target_env = "gnu")]
pub fn share_one() {
    set(libc::M_ARENA_MAX, 1);
}

/// Makes the allocator give freed memory back at once. For the start of a process.
#[cfg(target_env = "gnu")]
pub fn give_freed_memory_back() {
    set(libc::M_MMAP_THRESHOLD, THRESHOLD);
    set(libc::M_TRIM_THRESHOLD, THRESHOLD);
}

#[cfg(target_env = "gnu")]
fn set(option: libc::c_int, value: libc::c_int) {
    // SAFETY: mallopt takes any values, and the allocator's own locks.
    if unsafe { libc::mallopt(option, value) } == 0 {
        tracing::warn!(option, value, "mallopt refuses a setting: the heap may stay large");
    }
}

/// Gives back the free memory between blocks that are in use. For after work that took far more
/// than it left, as it looks at every free block.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: malloc_trim has no preconditions; it takes the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators have no such setting.
#[cfg(not(target_env = "gnu"))]
pub fn share_one() {}

/// Other allocators give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn give_freed_memory_back() {}

/// Other allocators give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
