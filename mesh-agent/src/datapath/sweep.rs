//! Forgets flows that are over, and counts the ones that are not.
//!
//! One walk over the four flow tables, in batches: what is over goes ([`super::fate`]). What is left is counted: entries, live connections of
//! each backend (whose correction is written for the least-connections policy), and the address indexes still in use.
//!
//! Invariants: a flow is looked at again right before it is forgotten; a count is corrected only by more than what flows changed under
//! the walk's feet.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya::Pod;
use aya::maps::{Array, HashMap, MapData};
use mesh_ebpf::abi::{
    Evicted, Flow, FlowKey, Fragment, FragmentKey, Histogram, Live, Nat, NatKey, names, protocol,
};
use mesh_ebpf::conntrack::{is_closed, is_established};

use super::durations::Durations;
use super::error::DatapathError;
use super::evictions::{ByProtocol, EvictionLedger, Evictions};
use super::fate::{Fate, Keyed, Terms, Tracked, fate};
use super::loader;
use super::maps::Dump;
use super::pins::Pins;

/// What a walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// Entries left, by map and protocol.
    pub(super) entries: BTreeMap<&'static str, ByProtocol<u64>>,
    /// Packets whose later fragments are waited for.
    pub(super) fragments: u64,
    /// Connections that are not closed, by backend.
    pub(super) live: BTreeMap<u32, u64>,
    /// Address indexes that flows name.
    pub(super) address_indexes: BTreeSet<u32>,
    /// Forgotten so far, before they ended.
    pub(super) evictions: ByProtocol<Evictions>,
    /// Connections that were forgotten before they ended, and whose clients don't know.
    pub(super) lost: Vec<FlowKey>,
}

/// Whose flows are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// The index of the backend's published port.
    pub(super) service_index: u32,
}

/// How much to take off a backend's count so that it says `counted`; none if it is right already, as far as anyone can tell: flows that
/// came or went during the walk may have been met or not.
fn corrected_drift(before: Live, after: Live, counted: u64, present: i64) -> Option<i64> {
    let moved =
        after.opened.wrapping_sub(before.opened).saturating_add(after.closed.wrapping_sub(before.closed));
    let tracked = after.opened.wrapping_sub(after.closed).cast_signed();
    let drift = tracked.wrapping_sub_unsigned(counted);
    (drift.abs_diff(present) > moved).then_some(drift)
}

/// One flow table.
struct Table<K, V> {
    map: &'static str,
    dump: Dump<K, V>,
    entries: HashMap<MapData, K, V>,
}

impl<K: Pod + Default + Keyed, V: Pod + Default + Tracked> Table<K, V> {
    fn open(pins: &Pins, map: &'static str) -> Result<Self, DatapathError> {
        Ok(Self { map, dump: Dump::open(pins, map)?, entries: loader::open(pins, map)? })
    }

    /// Forgets what is over, shows what ended early to `lose` and the rest to `keep`.
    fn sweep(
        &mut self,
        terms: &Terms,
        census: &mut Census,
        mut keep: impl FnMut(&mut Census, K, V),
        mut lose: impl FnMut(&mut Census, K, V, Evicted),
    ) -> Result<(), DatapathError> {
        let mut over = Vec::new();
        let mut left = ByProtocol::default();
        self.dump.for_each(|key, flow| {
            if fate(key.protocol(), &flow, terms) == Fate::Keep {
                *left.of_mut(key.protocol()) += 1;
                keep(census, key, flow);
            } else {
                over.push(key);
            }
        })?;
        for key in over {
            // It may have come back to life since the batch was read.
            let Ok(flow) = self.entries.get(&key, 0) else { continue };
            let cause = match fate(key.protocol(), &flow, terms) {
                Fate::Keep => continue,
                Fate::Closed => None,
                Fate::Idle => Some(Evicted::Timeout),
                Fate::BackendGone => Some(Evicted::BackendGone),
            };
            if self.entries.remove(&key).is_ok()
                && let Some(cause) = cause
            {
                lose(census, key, flow, cause);
            }
        }
        census.entries.insert(self.map, left);
        Ok(())
    }

    fn capacity(&self) -> Result<u32, DatapathError> {
        self.dump.capacity()
    }
}

/// The flow tables and the counts that are made from them.
pub(super) struct Sweeper {
    flows_half_open: Table<FlowKey, Flow>,
    flows_established: Table<FlowKey, Flow>,
    nat_half_open: Table<NatKey, Nat>,
    nat_established: Table<NatKey, Nat>,
    fragments: Dump<FragmentKey, Fragment>,
    live: Array<MapData, Live>,
    live_drift: Array<MapData, i64>,
    evictions: EvictionLedger,
    durations: Durations,
}

impl Sweeper {
    /// Opens the pinned tables.
    ///
    /// # Errors
    /// One isn't pinned, or isn't of the expected kind.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            flows_half_open: Table::open(pins, names::FLOWS_HALF_OPEN)?,
            flows_established: Table::open(pins, names::FLOWS_ESTABLISHED)?,
            nat_half_open: Table::open(pins, names::NAT_HALF_OPEN)?,
            nat_established: Table::open(pins, names::NAT_ESTABLISHED)?,
            fragments: Dump::open(pins, names::FRAGMENTS)?,
            live: loader::open(pins, names::LIVE)?,
            live_drift: loader::open(pins, names::LIVE_DRIFT)?,
            evictions: EvictionLedger::open(pins)?,
            durations: Durations::open(pins)?,
        })
    }

    /// Most entries of each table.
    ///
    /// # Errors
    /// The kernel doesn't tell.
    pub(super) fn capacities(&self) -> Result<BTreeMap<&'static str, u32>, DatapathError> {
        Ok(BTreeMap::from([
            (self.flows_half_open.map, self.flows_half_open.capacity()?),
            (self.flows_established.map, self.flows_established.capacity()?),
            (self.nat_half_open.map, self.nat_half_open.capacity()?),
            (self.nat_established.map, self.nat_established.capacity()?),
        ]))
    }

    /// Walks all tables once. The counts of `known` backends are corrected.
    ///
    /// # Errors
    /// A table can't be read or a correction not written; what was done stays.
    pub(super) fn sweep(
        &mut self,
        terms: &Terms,
        known: &BTreeMap<u32, Owner>,
    ) -> Result<Census, DatapathError> {
        let before = self.live_counts(known)?;
        let mut census = Census::default();
        // A connection confirmed during the walk would be met in both tables: the first one counts.
        let mut half_open = HashSet::new();
        let mut lives = BTreeMap::new();
        let evictions = &mut self.evictions;
        let mut lose = |census: &mut Census, key: FlowKey, flow: Flow, cause| {
            evictions.add(key.vip.protocol(), cause, 1);
            lose(census, key, &flow);
            if let (Some(owner), true) = (known.get(&flow.backend), has_lived(&key, &flow)) {
                let lives: &mut Histogram = lives.entry(owner.service_index).or_default();
                lives.add(flow.seen_ns.saturating_sub(flow.opened_ns));
            }
        };
        let keep = |census: &mut Census, key, flow: Flow| {
            half_open.insert(key);
            count(census, &key, &flow);
        };
        self.flows_half_open.sweep(terms, &mut census, keep, &mut lose)?;
        let keep = |census: &mut Census, key, flow: Flow| {
            if !half_open.contains(&key) {
                count(census, &key, &flow);
            }
        };
        self.flows_established.sweep(terms, &mut census, keep, &mut lose)?;
        self.correct(&before, &census, known)?;
        for (service_index, lives) in &lives {
            self.durations.add_swept(*service_index, lives)?;
        }
        // The NAT tables hold the same connections seen from the other side: they are not counted twice.
        self.nat_half_open.sweep(terms, &mut census, |_, _, _| {}, |_, _, _, _| {})?;
        self.nat_established.sweep(terms, &mut census, |_, _, _| {}, |_, _, _, _| {})?;
        self.fragments.for_each(|_, _| census.fragments += 1)?;
        census.evictions = self.evictions.settle()?;
        Ok(census)
    }

    fn live_counts(&self, known: &BTreeMap<u32, Owner>) -> Result<BTreeMap<u32, Live>, DatapathError> {
        let count = |id: &u32| {
            let live =
                self.live.get(id, 0).map_err(|error| DatapathError::map(names::LIVE, "lookup", error))?;
            Ok((*id, live))
        };
        known.keys().map(count).collect()
    }

    /// Writes the correction of each backend whose count is wrong.
    fn correct(
        &mut self,
        before: &BTreeMap<u32, Live>,
        census: &Census,
        known: &BTreeMap<u32, Owner>,
    ) -> Result<(), DatapathError> {
        for (id, before) in before {
            let after =
                self.live.get(id, 0).map_err(|error| DatapathError::map(names::LIVE, "lookup", error))?;
            let counted = census.live.get(id).copied().unwrap_or_default();
            let present = self
                .live_drift
                .get(id, 0)
                .map_err(|error| DatapathError::map(names::LIVE_DRIFT, "lookup", error))?;
            let Some(drift) = corrected_drift(*before, after, counted, present) else { continue };
            self.live_drift
                .set(*id, drift, 0)
                .map_err(|error| DatapathError::map(names::LIVE_DRIFT, "update", error))?;
            let protocol = known.get(id).map_or(protocol::TCP, |owner| owner.protocol);
            self.evictions.miss(protocol, drift.wrapping_sub(present));
        }
        Ok(())
    }
}

/// Adds a flow of the ingress side to the counts.
fn count(census: &mut Census, key: &FlowKey, flow: &Flow) {
    census.address_indexes.insert(key.vip.address_index());
    if !is_closed(flow.events) {
        *census.live.entry(flow.backend).or_default() += 1;
    }
}

/// Whether a flow was ever more than an attempt. A UDP flow may be one datagram long.
fn has_lived(key: &FlowKey, flow: &Flow) -> bool {
    key.vip.protocol() == protocol::UDP || is_established(flow.events)
}

/// Notes a connection that ended early: its client is to learn it.
fn lose(census: &mut Census, key: FlowKey, flow: &Flow) {
    if key.vip.protocol() == protocol::TCP && is_established(flow.events) {
        census.lost.push(key);
    }
}

/// The clock of `bpf_ktime_get_ns`, in nanoseconds.
pub(super) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the timespec that it is given, and nothing else.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    if result != 0 {
        return 0;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_correction_makes_the_count_right() {
        let live = Live { opened: 9, closed: 2 };
        assert_eq!(corrected_drift(live, live, 4, 0), Some(3), "7 tracked, 4 found");
        assert_eq!(live.count(3), 4);
        assert_eq!(corrected_drift(live, live, 4, 3), None, "right already");
        let behind = Live { opened: 3, closed: 5 };
        assert_eq!(corrected_drift(behind, behind, 2, 0), Some(-4), "more closed than opened");
    }

    #[test]
    fn flows_that_move_during_the_walk_correct_nothing_but_great_errors_are_mended_all_the_same() {
        let (before, after) = (Live { opened: 9, closed: 2 }, Live { opened: 10, closed: 3 });
        assert_eq!(corrected_drift(before, after, 5, 0), None, "off by 2, and 2 flows moved");
        assert_eq!(corrected_drift(before, after, 1, 0), Some(6), "off by 6, and 2 flows moved");
    }
}
