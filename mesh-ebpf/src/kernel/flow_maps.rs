//! The flow tables as the pipeline uses them: the cells of [`flow_table`] over an array map, and two LRU maps of translations.

use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};

use super::{atomic, maps};
use crate::abi::{Flow, FlowCell, FlowKey, Nat, NatKey};
use crate::conntrack;
use crate::flow_table::{self, Cells, Place};
use crate::lookups::{Entry, FlowTable, Opened};

/// `errno` of an entry that is already there.
const EEXIST: i32 = 17;

/// The flows of the ingress role.
pub struct FlowCells;

impl Cells for FlowCells {
    #[inline(always)]
    fn cell(&self, index: u32) -> Option<NonNull<FlowCell>> {
        maps::FLOWS.get_ptr_mut(index).and_then(NonNull::new)
    }

    #[inline(always)]
    fn homes(&self) -> u32 {
        // SAFETY: a constant, read where userspace may have put another value before the program was loaded.
        unsafe { (&raw const maps::FLOW_HOMES).read_volatile() }
    }

    #[inline(always)]
    fn factors(&self) -> [u64; 3] {
        // SAFETY: as above.
        unsafe { (&raw const maps::FLOW_FACTORS).read_volatile() }
    }

    #[inline(always)]
    fn search(&self, [a, b, c]: [u64; 3], home: u32, hops: u32) -> u32 {
        mesh_search_flow(a, b, c, home, hops)
    }

    #[inline(always)]
    fn vacate(&self, home: u32, now_ns: u64) -> u32 {
        mesh_vacate_flow(home, now_ns)
    }
}

/// [`flow_table::search`] as a function that the verifier knows by its types alone: with its loop in the programs, in several places,
/// they would be too long for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn mesh_search_flow(a: u64, b: u64, c: u64, home: u32, hops: u32) -> u32 {
    flow_table::search(&FlowCells, [a, b, c], home, hops)
}

/// [`flow_table::vacate`], likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn mesh_vacate_flow(home: u32, now_ns: u64) -> u32 {
    flow_table::vacate(&FlowCells, home, now_ns)
}

impl FlowTable<FlowKey, Flow> for FlowCells {
    type Entry = Place;

    #[inline(always)]
    fn find(&self, key: &FlowKey) -> Option<(Place, bool)> {
        let place = flow_table::find(self, key)?;
        Some((place, conntrack::is_established(place.get().events)))
    }

    #[inline(always)]
    fn open(&self, key: &FlowKey, flow: &Flow) -> Opened {
        flow_table::insert(self, key, flow, flow.seen_ns)
    }

    #[inline(always)]
    fn reclassify(&self, _: &FlowKey, _: &Place, _: bool, _: u32) {
        // A flow stays in its cell. A full table gives up those that have ended first, by their events.
    }

    #[inline(always)]
    fn replace(&self, _: &FlowKey, place: &Place, flow: &Flow) {
        flow_table::replace(place, flow);
    }

    #[inline(always)]
    fn forget(&self, key: &FlowKey) {
        if let Some(place) = flow_table::find(self, key) {
            flow_table::remove(self, key, &place);
        }
    }
}

impl Entry<Flow> for Place {
    #[inline(always)]
    fn get(&self) -> Flow {
        flow_table::read(self.cell)
    }

    #[inline(always)]
    fn touch(&self, now_ns: u64) {
        flow_table::touch(self.cell, now_ns);
    }

    #[inline(always)]
    fn add_events(&self, events: u32) -> u32 {
        flow_table::add_events(self.cell, events)
    }

    #[inline(always)]
    fn clear_events(&self, events: u32) -> u32 {
        flow_table::clear_events(self.cell, events)
    }

    #[inline(always)]
    fn set_sequence(&self, sequence: u16) {
        flow_table::set_sequence(self.cell, sequence);
    }
}

/// The translations of the backend role: a table of the established ones, and one of those that are not
/// confirmed yet or have ended. Each evicts its least recently used entry when it is full, so neither a
/// flood of SYNs nor a row of short connections pushes out a connection that is idle.
pub struct NatTables;

impl FlowTable<NatKey, Nat> for NatTables {
    type Entry = NatEntry;

    #[inline(always)]
    fn find(&self, key: &NatKey) -> Option<(NatEntry, bool)> {
        if let Some(entry) = maps::NAT_ESTABLISHED.get_ptr_mut(key).and_then(NonNull::new) {
            return Some((NatEntry(entry), true));
        }
        let entry = maps::NAT_HALF_OPEN.get_ptr_mut(key).and_then(NonNull::new)?;
        Some((NatEntry(entry), false))
    }

    #[inline(always)]
    fn open(&self, key: &NatKey, value: &Nat) -> Opened {
        match maps::NAT_HALF_OPEN.insert(key, value, u64::from(BPF_NOEXIST)) {
            Ok(()) => Opened::Added,
            Err(errno) if errno == -EEXIST => Opened::Exists,
            Err(_) => Opened::Refused,
        }
    }

    #[inline(always)]
    fn reclassify(&self, key: &NatKey, entry: &NatEntry, is_established: bool, events: u32) {
        // SAFETY: a live map value. The kernel copies it out of the one map into the other.
        let value = unsafe { entry.0.as_ref() };
        if !is_established && conntrack::is_lasting(events) {
            self.adopt(key, value);
        } else if is_established && conntrack::is_closed(events) {
            // Where the other table refuses the entry, it stays in this one until it is swept.
            if maps::NAT_HALF_OPEN.insert(key, value, u64::from(BPF_ANY)).is_ok() {
                maps::NAT_ESTABLISHED.remove(key).ok();
            }
        }
    }

    #[inline(always)]
    fn replace(&self, key: &NatKey, _: &NatEntry, value: &Nat) {
        self.adopt(key, value);
    }

    #[inline(always)]
    fn forget(&self, key: &NatKey) {
        // Not being there is as good as being removed.
        maps::NAT_ESTABLISHED.remove(key).ok();
        maps::NAT_HALF_OPEN.remove(key).ok();
    }
}

impl NatTables {
    /// Puts a flow among the established ones, in the place of what was known of it.
    #[inline(always)]
    fn adopt(&self, key: &NatKey, value: &Nat) {
        // A table that refuses the entry leaves it half-open, which works as well until it is evicted.
        if maps::NAT_ESTABLISHED.insert(key, value, u64::from(BPF_ANY)).is_ok() {
            maps::NAT_HALF_OPEN.remove(key).ok();
        }
    }
}

/// A live value of a table of translations. An evicted one stays readable until the program ends.
pub struct NatEntry(NonNull<Nat>);

impl Entry<Nat> for NatEntry {
    #[inline(always)]
    fn get(&self) -> Nat {
        // SAFETY: a live map value; a torn read of a field is at worst an old or a new timestamp.
        unsafe { *self.0.as_ptr() }
    }

    #[inline(always)]
    fn touch(&self, now_ns: u64) {
        // SAFETY: a live map value; any of two writers' timestamps will do.
        unsafe { (*self.0.as_ptr()).seen_ns = now_ns }
    }

    #[inline(always)]
    fn add_events(&self, events: u32) -> u32 {
        // SAFETY: a live map value, the field 4-byte aligned.
        unsafe { atomic::fetch_or(&raw mut (*self.0.as_ptr()).events, events) }
    }

    #[inline(always)]
    fn clear_events(&self, events: u32) -> u32 {
        // SAFETY: as above.
        unsafe { atomic::fetch_and(&raw mut (*self.0.as_ptr()).events, !events) }
    }

    #[inline(always)]
    fn set_sequence(&self, sequence: u16) {
        // SAFETY: a live map value; of two writers' numbers, which are close to each other, any will do.
        unsafe { (*self.0.as_ptr()).sequence = sequence }
    }
}
