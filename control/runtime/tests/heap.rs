//! Whether a process that begins as mesh-agent does keeps memory that it no longer uses.
//!
//! Without a harness, because the settings take effect in a process that has one thread so far.

#[cfg(target_env = "gnu")]
fn main() {
    use std::hint::black_box;

    use mesh_runtime::heap;

    /// The bytes that the allocator has of the kernel, by mallinfo2(3).
    fn held() -> usize {
        // SAFETY: mallinfo2 has no preconditions.
        let info = unsafe { libc::mallinfo2() };
        info.arena + info.hblkhd
    }

    heap::share_one();
    heap::give_freed_memory_back();
    let before = held();
    for _ in 0..7 {
        let worker = std::thread::spawn(|| {
            // A large block raises glibc's thresholds when it is freed; many small ones fill the
            // thread's heap.
            drop(black_box(vec![1_u8; 24 << 20]));
            drop((0..200_000).map(|_| black_box(Box::new([0_u8; 64]))).collect::<Vec<_>>());
        });
        worker.join().expect("no panic");
    }
    heap::trim();
    let grown = held().saturating_sub(before);
    assert!(grown < 1 << 20, "expected what was freed to go back, but {grown} bytes are kept");
}

#[cfg(not(target_env = "gnu"))]
fn main() {}
