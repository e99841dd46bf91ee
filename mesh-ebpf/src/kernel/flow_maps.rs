//! The pipeline's flow tables over kernel maps: the cells of [`flow_table`] in an array map, and
//! two LRU maps of translations.

use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};

use super::{atomic, guard, maps};
use crate::abi::{Flow, FlowCell, FlowKey, Nat, NatKey};
use crate::conntrack;
use crate::flow_table::{self, Cells, Place};
use crate::lookups::{FlowEntry, FlowTable, Opened};

/// `errno` of inserting an entry whose key exists.
const EEXIST: i32 = 17;

/// The cells of the ingress role's flow table.
pub struct FlowCells;

impl Cells for FlowCells {
    #[inline(always)]
    fn cell(&self, index: u32) -> Option<NonNull<FlowCell>> {
        maps::FLOWS.get_ptr_mut(index).and_then(NonNull::new)
    }

    #[inline(always)]
    fn homes(&self) -> u32 {
        // SAFETY: a constant; the volatile read fetches the value that userspace may have put in
        // its place before it loaded the program.
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

    #[inline(always)]
    fn evicted_half_open(&self, now_ns: u64) {
        guard::fire(now_ns);
    }
}

/// [`flow_table::search`] as a global function, which the verifier checks once by its types: with
/// its loop inlined in several places, the programs would exceed the verifier's limits.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn mesh_search_flow(a: u64, b: u64, c: u64, home: u32, hops: u32) -> u32 {
    flow_table::search(&FlowCells, [a, b, c], home, hops)
}

/// [`flow_table::vacate`] as a global function, for the same reason.
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
        // A flow stays in its cell. A full table evicts closed flows first, by their events.
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

impl FlowEntry<Flow> for Place {
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

/// The translations of the owner's role: a map of established ones, and a map of those that are
/// half-open or closed. Each evicts its least recently used entry when it is full, so neither a SYN
/// flood nor many short connections push out a connection that is idle.
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
        // SAFETY: a live map value. The kernel copies it from one map into the other.
        let value = unsafe { entry.0.as_ref() };
        if !is_established && conntrack::is_lasting(events) {
            self.adopt(key, value);
        } else if is_established && conntrack::is_closed(events) {
            // If the other map refuses the entry, it stays in this one until it is swept.
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
        // An entry that doesn't exist is as good as a removed one.
        maps::NAT_ESTABLISHED.remove(key).ok();
        maps::NAT_HALF_OPEN.remove(key).ok();
    }
}

impl NatTables {
    /// Stores the entry as established, in place of what was stored for its key.
    #[inline(always)]
    fn adopt(&self, key: &NatKey, value: &Nat) {
        // If the map refuses the entry, it stays half-open, which works as well until it is
        // evicted.
        if maps::NAT_ESTABLISHED.insert(key, value, u64::from(BPF_ANY)).is_ok() {
            maps::NAT_HALF_OPEN.remove(key).ok();
        }
    }
}

/// A live value of one of the maps of translations. It stays readable after an eviction until the
/// program ends.
pub struct NatEntry(NonNull<Nat>);

impl FlowEntry<Nat> for NatEntry {
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
        // SAFETY: a live map value; of two writers' numbers, which are close to each other, any
        // will do.
        unsafe { (*self.0.as_ptr()).sequence = sequence }
    }
}
