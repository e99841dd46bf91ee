//! Forgets flows that are over, and counts the ones that are not.
//!
//! One walk over the four flow tables, in batches: closed flows go after a short linger, idle ones after their timeout (their
//! service's, if it has one), flows of backends that are gone at once. What is left is counted: entries, live connections of each backend (whose
//! correction is written for the least-connections policy), and the address indexes still in use.
//!
//! Invariants: a flow is looked at again right before it is forgotten; a count is corrected only by more than what flows changed under
//! the walk's feet.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya::Pod;
use aya::maps::{Array, HashMap, MapData};
use mesh_ebpf::abi::{Flow, FlowKey, Live, Nat, NatKey, names, protocol};
use mesh_ebpf::conntrack::{ESTABLISHED_TIMEOUT_NS, idle_timeout_ns, is_closed, is_established};

use super::error::DatapathError;
use super::loader;
use super::maps::Dump;
use super::pins::Pins;

/// Why a flow was forgotten before it was seen to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evictions {
    /// By the kernel, as the table was full. Worked out from what is missing.
    pub lru: u64,
    /// Idle for too long.
    pub timeout: u64,
    /// Their backend is gone.
    pub backend_gone: u64,
}

/// What a walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// Entries left, by map.
    pub(super) entries: BTreeMap<&'static str, u64>,
    /// Connections that are not closed, by backend.
    pub(super) live: BTreeMap<u32, u64>,
    /// Address indexes that flows name.
    pub(super) address_indexes: BTreeSet<u32>,
    /// Forgotten so far.
    pub(super) evictions: Evictions,
    /// Connections that were forgotten before they ended, and whose clients don't know.
    pub(super) lost: Vec<FlowKey>,
}

/// What becomes of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Closed,
    Idle,
    BackendGone,
}

/// The part of a table's value that its fate depends on.
trait Tracked: Copy {
    fn seen_ns(&self) -> u64;
    fn events(&self) -> u32;
    fn backend(&self) -> u32;
}

impl Tracked for Flow {
    fn seen_ns(&self) -> u64 {
        self.seen_ns
    }
    fn events(&self) -> u32 {
        self.events
    }
    fn backend(&self) -> u32 {
        self.backend
    }
}

impl Tracked for Nat {
    fn seen_ns(&self) -> u64 {
        self.seen_ns
    }
    fn events(&self) -> u32 {
        self.events
    }
    fn backend(&self) -> u32 {
        self.backend
    }
}

/// What flows' fates depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Terms {
    /// Backends whose flows go on.
    pub(super) alive: BTreeSet<u32>,
    /// Of backends whose service says so: how long an established connection may be idle.
    pub(super) idle_ns: BTreeMap<u32, u64>,
    /// The clock.
    pub(super) now_ns: u64,
}

/// The part of a table's key that a flow's fate depends on.
trait Keyed {
    /// IP protocol number.
    fn protocol(&self) -> u8;
}

impl Keyed for FlowKey {
    fn protocol(&self) -> u8 {
        self.vip.protocol()
    }
}

impl Keyed for NatKey {
    fn protocol(&self) -> u8 {
        Self::protocol(self)
    }
}

/// What becomes of a flow of this protocol.
fn fate(protocol: u8, flow: &impl Tracked, terms: &Terms) -> Fate {
    let idle_ns = terms.now_ns.saturating_sub(flow.seen_ns());
    let usual_ns = idle_timeout_ns(protocol, flow.events());
    let limit_ns = match terms.idle_ns.get(&flow.backend()) {
        Some(limit_ns) if usual_ns == ESTABLISHED_TIMEOUT_NS => *limit_ns,
        _ => usual_ns,
    };
    if is_closed(flow.events()) {
        if idle_ns > usual_ns { Fate::Closed } else { Fate::Keep }
    } else if !terms.alive.contains(&flow.backend()) {
        Fate::BackendGone
    } else if idle_ns > limit_ns {
        Fate::Idle
    } else {
        Fate::Keep
    }
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
        mut lose: impl FnMut(&mut Census, K, V),
    ) -> Result<(), DatapathError> {
        let mut over = Vec::new();
        let mut left = 0;
        self.dump.for_each(|key, flow| {
            if fate(key.protocol(), &flow, terms) == Fate::Keep {
                left += 1;
                keep(census, key, flow);
            } else {
                over.push(key);
            }
        })?;
        for key in over {
            // It may have come back to life since the batch was read.
            let Ok(flow) = self.entries.get(&key, 0) else { continue };
            let counter = match fate(key.protocol(), &flow, terms) {
                Fate::Keep => continue,
                Fate::Closed => None,
                Fate::Idle => Some(&mut census.evictions.timeout),
                Fate::BackendGone => Some(&mut census.evictions.backend_gone),
            };
            if self.entries.remove(&key).is_ok()
                && let Some(counter) = counter
            {
                *counter += 1;
                lose(census, key, flow);
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
    live: Array<MapData, Live>,
    live_drift: Array<MapData, i64>,
    evictions: Evictions,
    /// Flows that were counted in and never out, over all backends, since the agent started.
    lost: i64,
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
            live: loader::open(pins, names::LIVE)?,
            live_drift: loader::open(pins, names::LIVE_DRIFT)?,
            evictions: Evictions::default(),
            lost: 0,
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
    pub(super) fn sweep(&mut self, terms: &Terms, known: &BTreeSet<u32>) -> Result<Census, DatapathError> {
        let before = self.live_counts(known)?;
        let mut census = Census { evictions: self.evictions, ..Census::default() };
        // A connection confirmed during the walk would be met in both tables: the first one counts.
        let mut half_open = HashSet::new();
        let keep = |census: &mut Census, key, flow: Flow| {
            half_open.insert(key);
            count(census, &key, &flow);
        };
        self.flows_half_open.sweep(terms, &mut census, keep, |_, _, _| {})?;
        let keep = |census: &mut Census, key, flow: Flow| {
            if !half_open.contains(&key) {
                count(census, &key, &flow);
            }
        };
        self.flows_established.sweep(terms, &mut census, keep, lose)?;
        let forgotten = census.evictions;
        self.correct(&before, &census)?;
        self.nat_half_open.sweep(terms, &mut census, |_, _, _| {}, |_, _, _| {})?;
        self.nat_established.sweep(terms, &mut census, |_, _, _| {}, |_, _, _| {})?;
        // The NAT tables hold the same connections seen from the other side: they are not counted twice.
        self.evictions = forgotten;
        let ours = (forgotten.timeout + forgotten.backend_gone).cast_signed();
        self.evictions.lru = forgotten.lru.max(u64::try_from(self.lost - ours).unwrap_or_default());
        census.evictions = self.evictions;
        Ok(census)
    }

    fn live_counts(&self, known: &BTreeSet<u32>) -> Result<BTreeMap<u32, Live>, DatapathError> {
        let count = |id: &u32| {
            let live =
                self.live.get(id, 0).map_err(|error| DatapathError::map(names::LIVE, "lookup", error))?;
            Ok((*id, live))
        };
        known.iter().map(count).collect()
    }

    /// Writes the correction of each backend whose count is wrong.
    fn correct(&mut self, before: &BTreeMap<u32, Live>, census: &Census) -> Result<(), DatapathError> {
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
            self.lost = self.lost.wrapping_add(drift.wrapping_sub(present));
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

/// Notes a connection that ended early: its client is to learn it.
fn lose(census: &mut Census, key: FlowKey, flow: Flow) {
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
    use mesh_ebpf::abi::flow_event::{ACK, CLIENT_FIN, RESET, SYN, TASK_FIN};
    use mesh_ebpf::abi::protocol::TCP;
    use mesh_ebpf::conntrack::{CLOSED_TIMEOUT_NS, HALF_OPEN_TIMEOUT_NS};

    use super::*;

    #[track_caller]
    fn check(events: u32, is_backend_alive: bool, idle_ns: u64, expected: Fate) {
        let flow = Flow { seen_ns: 1000, events, backend: 7, ..Flow::default() };
        let alive = if is_backend_alive { BTreeSet::from([7]) } else { BTreeSet::new() };
        let seen = fate(TCP, &flow, &Terms { alive, now_ns: 1000 + idle_ns, ..Terms::default() });
        assert_eq!(seen, expected, "events {events:#b}, alive {is_backend_alive}, idle for {idle_ns} ns");
    }

    #[test]
    fn flows_go_when_their_time_has_come_and_not_before() {
        check(SYN, true, HALF_OPEN_TIMEOUT_NS, Fate::Keep);
        check(SYN, true, HALF_OPEN_TIMEOUT_NS + 1, Fate::Idle);
        check(SYN | ACK, true, ESTABLISHED_TIMEOUT_NS, Fate::Keep);
        check(SYN | ACK, true, ESTABLISHED_TIMEOUT_NS + 1, Fate::Idle);
        check(SYN | ACK | RESET, true, CLOSED_TIMEOUT_NS, Fate::Keep);
        check(SYN | ACK | RESET, true, CLOSED_TIMEOUT_NS + 1, Fate::Closed);
        check(SYN | ACK | CLIENT_FIN | TASK_FIN, false, CLOSED_TIMEOUT_NS + 1, Fate::Closed);
        check(SYN | ACK, false, 0, Fate::BackendGone);
        check(SYN | ACK | RESET, false, 0, Fate::Keep);
    }

    #[test]
    fn a_service_may_end_idle_connections_earlier() {
        let terms = |idle_ns: u64| Terms {
            alive: BTreeSet::from([7]),
            idle_ns: BTreeMap::from([(7, 50)]),
            now_ns: 1000 + idle_ns,
        };
        let flow = |events| Flow { seen_ns: 1000, events, backend: 7, ..Flow::default() };
        assert_eq!(fate(TCP, &flow(SYN | ACK), &terms(50)), Fate::Keep);
        assert_eq!(fate(TCP, &flow(SYN | ACK), &terms(51)), Fate::Idle);
        assert_eq!(fate(TCP, &flow(SYN), &terms(51)), Fate::Keep, "half-open ones have a time of their own");
    }

    #[test]
    fn a_packet_seen_after_the_clock_was_read_keeps_its_flow() {
        let flow = Flow { seen_ns: 2000, events: SYN, ..Flow::default() };
        let terms = Terms { alive: BTreeSet::from([0]), now_ns: 1000, ..Terms::default() };
        assert_eq!(fate(TCP, &flow, &terms), Fate::Keep);
    }

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
