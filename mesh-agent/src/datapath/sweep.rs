//! Evicts flow entries that are over, and counts the others.
//!
//! One walk over the tables of flows and translations: entries that are over are removed
//! ([`super::expiry`]). The others are counted: entries, live connections of each backend (whose
//! correction is written for the least-connections policy), and the address indexes still in use.
//!
//! Invariants: an entry is checked again right before it is removed; a count is corrected only by
//! more than what flows changed during the walk, and not at all if its backend began anew meanwhile
//! ([`Tallies`]). A cell that two walks in a row find claimed was left so by an agent that was
//! killed, and is freed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aya::maps::{HashMap, MapData};
use mesh_ebpf::abi::{
    Evicted, Flow, FlowKey, FragmentKey, FragmentPorts, Histogram, Live, Nat, NatKey, names, protocol,
};
use mesh_ebpf::conntrack::{is_closed, is_established, is_outgoing};
use mesh_ebpf::flow_table;

use super::error::DatapathError;
use super::evictions::{ByProtocol, EvictionLedger, Evictions};
use super::expiry::{ExpiryInputs, FlowExpiry, Keyed, expiry};
use super::flow_map::{Claimed, FlowMap};
use super::loader;
use super::lock::lock;
use super::map_access::deleted;
use super::maps::Dump;
use super::pins::Pins;
use super::tallies::Tallies;

/// The name under which half-open flows are counted: one table holds all flows.
const FLOWS_HALF_OPEN: &str = "FLOWS_HALF_OPEN";
const FLOWS_ESTABLISHED: &str = "FLOWS_ESTABLISHED";

/// How often a cell that seems to be abandoned is checked before it is freed, and how long after
/// the last time.
const CLAIM_LOOKS: u32 = 100;
const CLAIM_LOOK: Duration = Duration::from_micros(10);

/// The result of a walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// Entries left, by map (flows by kind) and protocol.
    pub(super) entries: BTreeMap<&'static str, ByProtocol<u64>>,
    /// Fragmented packets whose later fragments are expected.
    pub(super) fragments: u64,
    /// Connections that are not closed, by backend.
    pub(super) live: BTreeMap<u32, u64>,
    /// Address indexes that flows name.
    pub(super) address_indexes: BTreeSet<u32>,
    /// Entries evicted so far before their flows ended.
    pub(super) evictions: ByProtocol<Evictions>,
    /// Connections that were evicted before they ended, and whose clients don't know.
    pub(super) lost: Vec<FlowKey>,
}

impl Census {
    /// Entries left in this map.
    pub(super) fn entries_of(&self, map: &str) -> u64 {
        let of = |table| {
            let entries = self.entries.get(table).copied().unwrap_or_default();
            entries.tcp + entries.udp
        };
        if map == names::FLOWS { of(FLOWS_HALF_OPEN) + of(FLOWS_ESTABLISHED) } else { of(map) }
    }
}

/// The owner of counted flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// The index of the backend's published port.
    pub(super) service_index: u32,
}

/// One table of translations.
struct Table {
    map: &'static str,
    dump: Dump<NatKey, Nat>,
    entries: HashMap<MapData, NatKey, Nat>,
}

impl Table {
    fn open(pins: &Pins, map: &'static str) -> Result<Self, DatapathError> {
        Ok(Self { map, dump: Dump::open(pins, map)?, entries: loader::open(pins, map)? })
    }

    /// Removes entries that are over, and counts the others.
    fn sweep(&mut self, terms: &ExpiryInputs, census: &mut Census) -> Result<(), DatapathError> {
        let mut over = Vec::new();
        let mut left = ByProtocol::default();
        self.dump.for_each(|key, nat| {
            if expiry(key.protocol(), &nat, terms) == FlowExpiry::Keep {
                *left.of_mut(key.protocol()) += 1;
            } else {
                over.push(key);
            }
        })?;
        for key in over {
            // The flow may have become active since the batch was read, or its entry may be gone.
            let is_over = self
                .entries
                .get(&key, 0)
                .is_ok_and(|nat| expiry(key.protocol(), &nat, terms) != FlowExpiry::Keep);
            if is_over {
                deleted(self.map, self.entries.remove(&key))?;
            }
        }
        census.entries.insert(self.map, left);
        Ok(())
    }

    fn capacity(&self) -> Result<u32, DatapathError> {
        self.dump.capacity()
    }
}

/// The flow tables, and the counts that are made from them.
pub(super) struct Sweeper {
    flows: FlowMap,
    /// The cells that the last walk found claimed.
    claimed: Claimed,
    nat_half_open: Table,
    nat_established: Table,
    fragments: Dump<FragmentKey, FragmentPorts>,
    evictions: EvictionLedger,
    tallies: Arc<Mutex<Tallies>>,
}

impl Sweeper {
    /// Opens the pinned tables.
    ///
    /// # Errors
    /// One isn't pinned, or isn't of the expected kind.
    pub(super) fn open(pins: &Pins, tallies: Arc<Mutex<Tallies>>) -> Result<Self, DatapathError> {
        Ok(Self {
            flows: FlowMap::open(pins)?,
            claimed: Claimed::new(),
            nat_half_open: Table::open(pins, names::NAT_HALF_OPEN)?,
            nat_established: Table::open(pins, names::NAT_ESTABLISHED)?,
            fragments: Dump::open(pins, names::FRAGMENTS)?,
            evictions: EvictionLedger::open(pins)?,
            tallies,
        })
    }

    /// The most flows or translations of each table.
    ///
    /// # Errors
    /// The kernel doesn't report it.
    pub(super) fn capacities(&self) -> Result<BTreeMap<&'static str, u32>, DatapathError> {
        Ok(BTreeMap::from([
            (names::FLOWS, self.flows.room()),
            (self.nat_half_open.map, self.nat_half_open.capacity()?),
            (self.nat_established.map, self.nat_established.capacity()?),
        ]))
    }

    /// Begins a walk: its results for what is reset from now on are dropped. Call it before asking
    /// which backends are known.
    pub(super) fn begin(&self) {
        lock(&self.tallies).begin_walk();
    }

    /// Walks all tables once. The counts of `known` backends are corrected.
    ///
    /// # Errors
    /// A table can't be read or a correction not written; what was done stays.
    pub(super) fn sweep(
        &mut self,
        terms: &ExpiryInputs,
        known: &BTreeMap<u32, Owner>,
    ) -> Result<Census, DatapathError> {
        let before = lock(&self.tallies).live_counts(known.keys().copied())?;
        let mut census = Census::default();
        let mut lives = BTreeMap::new();
        self.sweep_flows(terms, &mut census, |key, flow| {
            if let (Some(owner), true) = (known.get(&flow.backend_id()), has_lived(key, flow)) {
                let lives: &mut Histogram = lives.entry(owner.service_index).or_default();
                lives.add(flow.seen_ns.saturating_sub(flow.opened_ns));
            }
        });
        self.correct(&before, &census, known)?;
        for (service_index, lives) in &lives {
            lock(&self.tallies).add_swept(*service_index, lives)?;
        }
        // The NAT tables hold the same connections seen from the other side: they are not counted
        // twice.
        self.nat_half_open.sweep(terms, &mut census)?;
        self.nat_established.sweep(terms, &mut census)?;
        self.fragments.for_each(|_, _| census.fragments += 1)?;
        census.evictions = self.evictions.settle()?;
        Ok(census)
    }

    /// Removes flows that are over, shows those that ended early to `lost`, and counts the rest.
    fn sweep_flows(
        &mut self,
        terms: &ExpiryInputs,
        census: &mut Census,
        mut lost: impl FnMut(&FlowKey, &Flow),
    ) {
        let (mut half_open, mut established) = (ByProtocol::default(), ByProtocol::default());
        let mut over = Vec::new();
        let claimed = self.flows.for_each(|index, key, flow| {
            if expiry(key.protocol(), &flow, terms) != FlowExpiry::Keep {
                over.push((index, key));
                return;
            }
            let kind = if is_established(flow.events) { &mut established } else { &mut half_open };
            *kind.of_mut(key.protocol()) += 1;
            count(census, &key, &flow);
        });
        self.free_abandoned(claimed);
        for (index, key) in over {
            let mut expiry_now = FlowExpiry::Keep;
            // The flow may have become active since it was read.
            let is_over = |flow: &Flow| {
                expiry_now = expiry(key.protocol(), flow, terms);
                expiry_now != FlowExpiry::Keep
            };
            let Some(flow) = flow_table::remove_if(&self.flows, index, &key, is_over) else { continue };
            let cause = match expiry_now {
                FlowExpiry::Keep | FlowExpiry::Closed => continue,
                FlowExpiry::Idle => Evicted::Timeout,
                FlowExpiry::BackendGone => Evicted::BackendGone,
            };
            if is_outgoing(flow.events) {
                continue;
            }
            self.evictions.add(key.protocol(), cause, 1);
            lose(census, key, &flow);
            lost(&key, &flow);
        }
        census.entries.insert(FLOWS_HALF_OPEN, half_open);
        census.entries.insert(FLOWS_ESTABLISHED, established);
    }

    /// Frees cells that were claimed at the last walk and stay so: no live program or agent takes
    /// so long. Of a flow that begins anew with every packet (a flood of one SYN) two walks may
    /// find the claims of two programs.
    fn free_abandoned(&mut self, claimed: Claimed) {
        for (index, key) in &claimed {
            if self.claimed.get(index) == Some(key) && self.stays_claimed(*index, key) {
                tracing::info!(cell = index, "free a cell of the flow table that an agent left claimed");
                flow_table::free_abandoned(&self.flows, *index);
            }
        }
        self.claimed = claimed;
    }

    /// Whether the cell stays claimed for this key during several checks.
    fn stays_claimed(&self, index: u32, key: &[u64; 3]) -> bool {
        (0..CLAIM_LOOKS).all(|_| {
            std::thread::sleep(CLAIM_LOOK);
            flow_table::claimed(&self.flows, index).as_ref() == Some(key)
        })
    }

    /// Writes the correction of each backend whose count is wrong.
    fn correct(
        &mut self,
        before: &BTreeMap<u32, Live>,
        census: &Census,
        known: &BTreeMap<u32, Owner>,
    ) -> Result<(), DatapathError> {
        for (id, before) in before {
            let counted = census.live.get(id).copied().unwrap_or_default();
            let Some(missed) = lock(&self.tallies).correct(*id, *before, counted)? else { continue };
            let protocol = known.get(id).map_or(protocol::TCP, |owner| owner.protocol);
            self.evictions.miss(protocol, missed);
        }
        Ok(())
    }
}

/// Adds a flow of the ingress side to the counts.
fn count(census: &mut Census, key: &FlowKey, flow: &Flow) {
    census.address_indexes.insert(key.vip.address_index());
    if !is_closed(flow.events) && !is_outgoing(flow.events) {
        *census.live.entry(flow.backend_id()).or_default() += 1;
    }
}

/// Whether a flow was ever more than an attempt. A UDP flow may be one datagram long.
fn has_lived(key: &FlowKey, flow: &Flow) -> bool {
    key.vip.protocol() == protocol::UDP || is_established(flow.events)
}

/// Records a connection that ended early, so that its client is sent an ACK ([`super::provoke`]).
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
    // This clock counts from the start of the machine.
    time.tv_sec.cast_unsigned().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.cast_unsigned())
}
