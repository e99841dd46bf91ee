//! A flow table in this process's memory: for tests of the table itself, and to fill the kernel's
//! map with.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;

use crate::abi::{Flow, FlowCell, FlowKey};
use crate::flow_table::{self, Cells, cell_count};
use crate::lookups::Opened;

/// A flow table in memory.
pub struct HostCells {
    cells: Box<[UnsafeCell<FlowCell>]>,
    homes: u32,
    factors: [u64; 3],
    half_open_evicted_ns: AtomicU64,
}

// SAFETY: fields that are written while others read them are written whole, and the word of the
// cell says what they mean; see `flow_table`.
unsafe impl Sync for HostCells {}

impl HostCells {
    /// An empty table.
    pub fn new(homes: u32, seed: u64) -> Self {
        let cells = (0..cell_count(homes)).map(|_| UnsafeCell::new(FlowCell::default())).collect();
        let half_open_evicted_ns = AtomicU64::new(0);
        Self { cells, homes, factors: flow_table::factors(seed), half_open_evicted_ns }
    }

    /// A table with these flows.
    pub fn with<'a>(homes: u32, seed: u64, flows: impl IntoIterator<Item = &'a (FlowKey, Flow)>) -> Self {
        let table = Self::new(homes, seed);
        for (key, flow) in flows {
            let added = flow_table::insert(&table, key, flow, flow.seen_ns);
            assert_eq!(added, Opened::Added, "a table of {homes} homes takes {key:?}");
        }
        table
    }

    /// When a half-open TCP flow was last evicted, ns of the table's clock; 0: never.
    pub fn half_open_evicted_ns(&self) -> u64 {
        self.half_open_evicted_ns.load(Ordering::Relaxed)
    }

    /// Copies of all cells.
    pub fn contents(&mut self) -> impl Iterator<Item = FlowCell> {
        self.cells.iter_mut().map(|cell| *cell.get_mut())
    }
}

impl Cells for HostCells {
    fn cell(&self, index: u32) -> Option<NonNull<FlowCell>> {
        NonNull::new(self.cells.get(index as usize)?.get())
    }

    fn homes(&self) -> u32 {
        self.homes
    }

    fn factors(&self) -> [u64; 3] {
        self.factors
    }

    fn evicted_half_open(&self, now_ns: u64) {
        self.half_open_evicted_ns.store(now_ns, Ordering::Relaxed);
    }
}
