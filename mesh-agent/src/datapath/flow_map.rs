//! Maps the programs' flow table into this process's memory: the same cells, and the same code over
//! them ([`flow_table`]).
//!
//! Invariants: an entry may change while it is read; an entry is claimed before it is removed, as
//! the programs do. The table's seed is stored in its last cell, so that every agent gives its
//! programs the seed by which the flows were placed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::ptr::NonNull;

use aya::maps::MapData;
use mesh_ebpf::abi::{Flow, FlowCell, FlowKey, names};
use mesh_ebpf::flow_table::{self, Cells, NEIGHBOURS, cell_count, header_index, homes_of, room_of};
use mesh_ebpf::lookups::Opened;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::error::DatapathError;
use super::pins::Pins;

/// Claimed cells by index, with the words of their keys.
pub(super) type Claimed = BTreeMap<u32, [u64; 3]>;

/// The flow table, mapped into the agent's memory.
pub(super) struct FlowMap {
    cells: NonNull<FlowCell>,
    homes: u32,
    /// The seed of the hash; see [`flow_table::factors`].
    seed: u64,
    factors: [u64; 3],
    /// Owns the file descriptor that keeps the mmap valid.
    _data: MapData,
}

// SAFETY: the memory is shared with the kernel anyway, and changed by `flow_table` only, which is
// made for that.
unsafe impl Send for FlowMap {}

impl FlowMap {
    /// Opens the table of these pins.
    ///
    /// # Errors
    /// It isn't pinned, is of another kind, or can't be mapped.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Self::from_pin(&pins.map(names::FLOWS)).map_err(|source| DatapathError::MapOperation {
            map: names::FLOWS,
            operation: "mmap",
            source,
        })
    }

    /// Opens a pinned table.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn from_pin(pin: &Path) -> io::Result<Self> {
        let data = MapData::from_pin(pin).map_err(io::Error::other)?;
        let info = data.info().map_err(io::Error::other)?;
        let count = info.max_entries();
        if info.value_size() as usize != size_of::<FlowCell>() || count <= NEIGHBOURS {
            let size = info.value_size();
            return Err(io::Error::other(format!("{count} entries of {size} bytes are no table of flows")));
        }
        let (read_write, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: new memory, of which nothing else knows.
        let cells = unsafe { mmap(std::ptr::null_mut(), bytes(count), read_write, shared, data.fd(), 0) }?;
        let cells = NonNull::new(cells.cast()).ok_or_else(|| io::Error::other("a table at address 0"))?;
        let mut table = Self { cells, homes: homes_of(count), seed: 0, factors: [0; 3], _data: data };
        table.seed = table.header().map_or(0, |header| flow_table::read(header).opened_ns);
        table.factors = flow_table::factors(table.seed);
        Ok(table)
    }

    /// Gives a new table its seed, before any flow is in it.
    pub(super) fn set_seed(&mut self, seed: u64) {
        if let Some(header) = self.header() {
            // SAFETY: a cell of ours that no program touches.
            unsafe { (&raw mut (*header.as_ptr()).flow.opened_ns).write_volatile(seed) };
        }
        self.seed = seed;
        self.factors = flow_table::factors(seed);
    }

    /// The seed of its hash.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    fn header(&self) -> Option<NonNull<FlowCell>> {
        self.cell(header_index(self.homes))
    }

    /// Calls `visit` with every flow and its cell's index; returns the cells that are claimed.
    pub(super) fn for_each(&self, mut visit: impl FnMut(u32, FlowKey, Flow)) -> Claimed {
        let mut claimed = Claimed::new();
        for index in 0..header_index(self.homes) {
            if let Some((key, flow)) = flow_table::at(self, index) {
                visit(index, key, flow);
            }
            if let Some(key) = flow_table::claimed(self, index) {
                claimed.insert(index, key);
            }
        }
        claimed
    }

    /// Copies the flows of another table into this one; returns how many found a place.
    pub(super) fn take_over(&self, other: &Self) -> u64 {
        let mut taken = 0;
        other.for_each(|_, key, flow| {
            taken += u64::from(flow_table::insert(self, &key, &flow, flow.seen_ns) == Opened::Added);
        });
        taken
    }

    /// The number of flows for which the table has room.
    pub(super) fn room(&self) -> u32 {
        room_of(cell_count(self.homes))
    }
}

impl Drop for FlowMap {
    fn drop(&mut self) {
        // SAFETY: the memory is ours, and nothing points into it any more.
        let unmapped = unsafe { munmap(self.cells.as_ptr().cast(), bytes(cell_count(self.homes))) };
        debug_assert!(unmapped.is_ok(), "a table that was mapped can be unmapped");
    }
}

impl Cells for FlowMap {
    fn cell(&self, index: u32) -> Option<NonNull<FlowCell>> {
        // SAFETY: within the mapped memory.
        (index < cell_count(self.homes)).then(|| unsafe { self.cells.add(index as usize) })
    }

    fn homes(&self) -> u32 {
        self.homes
    }

    fn factors(&self) -> [u64; 3] {
        self.factors
    }

    fn evicted_half_open(&self, _: u64) {
        // The agent adds flows only to a table that it makes, before any program uses it.
    }
}

fn bytes(cells: u32) -> usize {
    cells as usize * size_of::<FlowCell>()
}
