//! Counters of the data plane, read from the live maps.
//!
//! Invariants: a count is the sum over all CPUs at the moment of reading; counters never fall while
//! their backend or port lives.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray};
use mesh_ebpf::abi::{
    Backend, BackendLoad, BackendStats, Direction, DropReason, FrontendStats, Live, Policy, Service, Traffic,
    drop_index, names,
};
use mesh_ebpf::guard;

use super::attach::AttachedHook;
use super::contents::Front;
use super::durations::{PortDurations, Timings};
use super::error::{DatapathError, MapErrors};
use super::evictions::{ByProtocol, Evictions};
use super::loader;
use super::network::upkeep::HostSettings;
use super::pins::Pins;
use super::published::Outline;
use super::sweep::{Census, monotonic_ns};

/// All counters of the data plane at one moment.
#[derive(Debug, Clone, Default)]
pub struct StatsSnapshot {
    /// Published ports and virtual IPs.
    pub frontends: Vec<FrontendSnapshot>,
    /// Backends whose flows go on.
    pub backends: Vec<BackendSnapshot>,
    /// Packets not forwarded, for every reason and direction.
    pub drops: Vec<(DropReason, Direction, u64)>,
    /// Packets left to the host stack.
    pub passed: Vec<(Direction, u64)>,
    /// Whether the SYN-flood guard is active and decides how flows are balanced.
    pub is_guarding: bool,
    /// Entries of the flow tables, as of the last sweep, by map name and protocol.
    pub conntrack: BTreeMap<&'static str, ByProtocol<u64>>,
    /// Flow entries evicted before the flow ended.
    pub evictions: ByProtocol<Evictions>,
    /// How full the maps are.
    pub maps: Vec<MapFill>,
    /// Failed operations, by map and operation.
    pub map_errors: BTreeMap<(&'static str, &'static str), u64>,
    /// Where programs are attached.
    pub hooks: Vec<AttachedHook>,
    /// The state of the host's settings.
    pub host: HostSettings,
}

/// A published port or a virtual IP.
#[derive(Debug, Clone, Copy)]
pub struct FrontendSnapshot {
    /// Protocol and port, or network and address.
    pub front: Front,
    /// The policy in force.
    pub policy: Policy,
    /// The number of its slots; 0: new connections are refused.
    pub slots: u32,
    /// What the programs counted for the published port.
    pub stats: FrontendStats,
    /// How long its handshakes and flows took.
    pub durations: PortDurations,
}

/// What the maps say of one backend.
#[derive(Debug, Clone, Copy)]
pub struct BackendSnapshot {
    /// The id by which maps and packets name the backend.
    pub id: u32,
    /// The backend's entry.
    pub backend: Backend,
    /// What the programs counted for the backend.
    pub stats: BackendStats,
    /// Live connections through this node.
    pub live: u64,
    /// Its load, 1 (idle) to 127 (saturated), and the load's age; none if it was never known.
    pub load: Option<(u32, Duration)>,
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapFill {
    /// The map's name.
    pub map: &'static str,
    /// Entries in use.
    pub entries: u64,
    /// The most entries.
    pub capacity: u64,
}

/// The counters that only the programs write.
pub(super) struct Counters {
    frontend_stats: PerCpuArray<MapData, FrontendStats>,
    backend_stats: PerCpuArray<MapData, BackendStats>,
    drops: PerCpuArray<MapData, u64>,
    passed: PerCpuArray<MapData, u64>,
    guard_fired_ns: Array<MapData, u64>,
    live: Array<MapData, Live>,
    live_drift: Array<MapData, i64>,
    loads: Array<MapData, BackendLoad>,
    timings: Timings,
}

impl Counters {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// One isn't pinned, or isn't of the expected kind.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            frontend_stats: loader::open(pins, names::FRONTEND_STATS)?,
            backend_stats: loader::open(pins, names::BACKEND_STATS)?,
            drops: loader::open(pins, names::DROPS)?,
            passed: loader::open(pins, names::PASSED)?,
            guard_fired_ns: loader::open(pins, names::SYN_GUARD_FIRED)?,
            live: loader::open(pins, names::LIVE)?,
            live_drift: loader::open(pins, names::LIVE_DRIFT)?,
            loads: loader::open(pins, names::LOADS)?,
            timings: Timings::open(pins)?,
        })
    }

    /// The counters of the ports and backends in `outline`.
    ///
    /// # Errors
    /// A map can't be read.
    pub(super) fn read(&self, outline: &Outline) -> Result<StatsSnapshot, DatapathError> {
        let mut snapshot = StatsSnapshot::default();
        for (front, service) in &outline.frontends {
            snapshot.frontends.push(self.frontend(*front, service)?);
        }
        for (id, backend) in &outline.backends {
            snapshot.backends.push(self.backend(*id, backend)?);
        }
        for reason in DropReason::ALL {
            for direction in Direction::ALL {
                let index = drop_index(reason, direction);
                let packets = sum(&self.drops, index, names::DROPS, |sum, value| sum + value)?;
                snapshot.drops.push((reason, direction, packets));
            }
        }
        for direction in Direction::ALL {
            let packets = sum(&self.passed, direction as u32, names::PASSED, |sum, value| sum + value)?;
            snapshot.passed.push((direction, packets));
        }
        let fired_ns = self
            .guard_fired_ns
            .get(&0, 0)
            .map_err(|error| DatapathError::map(names::SYN_GUARD_FIRED, "lookup", error))?;
        snapshot.is_guarding =
            fired_ns != 0 && monotonic_ns().saturating_sub(fired_ns) < guard::HASHED_SELECTION_NS;
        Ok(snapshot)
    }

    fn frontend(&self, front: Front, service: &Service) -> Result<FrontendSnapshot, DatapathError> {
        let stats = sum(&self.frontend_stats, service.index, names::FRONTEND_STATS, add_frontends)?;
        let policy = Policy::from_byte(service.policy);
        let durations = self.timings.read(service.index)?;
        Ok(FrontendSnapshot { front, policy, slots: service.slot_count, stats, durations })
    }

    /// The counters of a backend.
    ///
    /// # Errors
    /// The map can't be read.
    pub(super) fn backend_stats(&self, id: u32) -> Result<BackendStats, DatapathError> {
        sum(&self.backend_stats, id, names::BACKEND_STATS, add_backends)
    }

    fn backend(&self, id: u32, backend: &Backend) -> Result<BackendSnapshot, DatapathError> {
        let stats = self.backend_stats(id)?;
        let live = self.live.get(&id, 0).map_err(|error| DatapathError::map(names::LIVE, "lookup", error))?;
        let drift = self
            .live_drift
            .get(&id, 0)
            .map_err(|error| DatapathError::map(names::LIVE_DRIFT, "lookup", error))?;
        let load =
            self.loads.get(&id, 0).map_err(|error| DatapathError::map(names::LOADS, "lookup", error))?;
        Ok(BackendSnapshot { id, backend: *backend, stats, live: live.count(drift), load: known_load(load) })
    }
}

impl StatsSnapshot {
    /// Adds what isn't counted in maps.
    pub(super) fn with(
        mut self,
        outline: &Outline,
        census: &Census,
        capacities: &BTreeMap<&'static str, u32>,
        errors: MapErrors,
        hooks: Vec<AttachedHook>,
        host: HostSettings,
    ) -> Self {
        self.maps = fills(outline, census, capacities);
        self.conntrack = census.entries.clone();
        self.evictions = census.evictions;
        self.map_errors = errors;
        self.hooks = hooks;
        self.host = host;
        self
    }
}

fn known_load(load: BackendLoad) -> Option<(u32, Duration)> {
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(load.seen_ns));
    (load.load != 0).then_some((load.load, age))
}

fn fills(outline: &Outline, census: &Census, capacities: &BTreeMap<&'static str, u32>) -> Vec<MapFill> {
    let tables = outline.fills.iter().copied();
    let fragments = (names::FRAGMENTS, census.fragments, names::FRAGMENTS_MAX);
    let flows = capacities.iter().map(|(map, capacity)| (*map, census.entries_of(map), *capacity));
    tables
        .chain([fragments])
        .chain(flows)
        .map(|(map, entries, capacity)| MapFill { map, entries, capacity: u64::from(capacity) })
        .collect()
}

/// The sum of one entry over all CPUs.
fn sum<V: aya::Pod + Default>(
    counters: &PerCpuArray<MapData, V>,
    index: u32,
    map: &'static str,
    add: impl Fn(V, V) -> V,
) -> Result<V, DatapathError> {
    let values = counters.get(&index, 0).map_err(|error| DatapathError::map(map, "lookup", error))?;
    Ok(values.iter().fold(V::default(), |sum, value| add(sum, *value)))
}

fn add_traffic(a: Traffic, b: Traffic) -> Traffic {
    Traffic { packets: a.packets + b.packets, bytes: a.bytes + b.bytes }
}

fn add_frontends(a: FrontendStats, b: FrontendStats) -> FrontendStats {
    FrontendStats {
        request: add_traffic(a.request, b.request),
        reply: add_traffic(a.reply, b.reply),
        opened: a.opened + b.opened,
        no_backend: a.no_backend + b.no_backend,
        unremembered: a.unremembered + b.unremembered,
        ..FrontendStats::default()
    }
}

fn add_backends(a: BackendStats, b: BackendStats) -> BackendStats {
    BackendStats {
        request: add_traffic(a.request, b.request),
        reply: add_traffic(a.reply, b.reply),
        opened: a.opened + b.opened,
        closed: a.closed + b.closed,
        refused: a.refused + b.refused,
        unanswered: a.unanswered + b.unanswered,
        answered: a.answered + b.answered,
    }
}
