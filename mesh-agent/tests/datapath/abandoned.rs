//! A cell of the flow table that an agent had claimed when it was killed.

use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::maps::MapData;
use mesh_agent::datapath::DatapathMode;
use mesh_ebpf::abi::{ABI_HASH, Flow, FlowCell, flow_event, names};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::netlab::{NODES, Netlab};
use crate::node::{Traces, configs};
use crate::{can_run, connect, echo, eventually, start};

/// The bit of a cell's word that marks the cell as claimed.
const CLAIMED: u32 = 1 << 15;

/// The programs' flow table, as another process maps it.
struct Table {
    cells: NonNull<FlowCell>,
    count: usize,
    _data: MapData,
}

impl Table {
    fn open(pin: &Path) -> Self {
        let data = MapData::from_pin(pin).unwrap_or_else(|error| panic!("open {}: {error}", pin.display()));
        let count = data.info().expect("what it is").max_entries() as usize;
        let bytes = count * size_of::<FlowCell>();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, of which nothing else knows.
        let cells = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, data.fd(), 0) };
        let cells = NonNull::new(cells.expect("map the table").cast()).expect("an address");
        Self { cells, count, _data: data }
    }

    /// The words of all cells but the last, which holds no flow.
    fn words(&self) -> impl Iterator<Item = &AtomicU32> {
        let offset = std::mem::offset_of!(FlowCell, flow) + std::mem::offset_of!(Flow, events);
        // SAFETY: within the mapped memory, aligned, and changed by atomic instructions only.
        (0..self.count - 1).map(move |index| unsafe {
            AtomicU32::from_ptr(self.cells.add(index).byte_add(offset).cast().as_ptr())
        })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: the memory is ours, and nothing points into it any more.
        let unmapped = unsafe { munmap(self.cells.as_ptr().cast(), self.count * size_of::<FlowCell>()) };
        unmapped.expect("what was mapped can be unmapped");
    }
}

#[test]
fn a_cell_that_a_killed_agent_left_claimed_is_free_again() {
    if !can_run() {
        return;
    }
    let mut configs = configs("abandon", DatapathMode::Tc);
    for config in &mut configs {
        config.sweep_period = Duration::from_millis(200);
    }
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("abandon", false);
    let ([first, second], _) = start(&lab, &configs);
    let mut streams = [(); 2].map(|()| lab.client.call(|| connect(NODES[0])).expect("a connection").0);
    for stream in &mut streams {
        echo(stream, 1000);
    }
    let table =
        Table::open(&configs[0].bpffs.join(format!("{ABI_HASH:016x}")).join("maps").join(names::FLOWS));
    let taken = || table.words().filter(|word| word.load(Ordering::SeqCst) & flow_event::ALL != 0);
    assert_eq!(taken().count(), 2, "cells in which the connections stand");
    let abandoned = taken().next().expect("the first");
    abandoned.fetch_or(CLAIMED, Ordering::SeqCst);
    eventually("the cell is free", || abandoned.load(Ordering::SeqCst) & (flow_event::ALL | CLAIMED) == 0);
    assert_eq!(taken().count(), 1, "the other connection stays");
    first.stop();
    second.stop();
    drop(table);
    drop(lab);
    drop(traces);
}
