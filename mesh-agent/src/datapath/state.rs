//! The maps and their mirror: brings them to the desired contents, which follow from the table and
//! the node's own facts.
//!
//! Invariants: the mirror holds what the maps hold, as nobody else writes them, and is read back
//! from them regularly. Writes stop at the first that fails, so the order that keeps every step
//! safe is never left; what was applied stays in force. A view of generation 0 means "no table
//! received yet" and is not applied.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_ebpf::abi::{Address, Backend, BackendLoad};
use mesh_state::ids::{BackendId, TaskId};
use tracing::{error, info, warn};

use super::contents::{Contents, Front, Frontend, Write};
use super::diff::{Held, Plan, Refusal, frontend, plan};
use super::error::DatapathError;
use super::expiry::ExpiryInputs;
use super::facts::{Facts, TaskPort};
use super::maps::Maps;
use super::published::Published;
use super::sweep::Owner;
use crate::lb::ramp::Ramps;
use crate::view::{NodeView, Weighted};

/// How long slots rest before they are used again. No program runs nearly that long.
const SLOTS_REST: Duration = Duration::from_secs(1);

/// The most plans in a row for one change: a swap, what waited for it, and one to see that nothing
/// is left.
const PLANS_MAX: usize = 4;

/// The maps, their contents, and the desired contents.
pub(super) struct State {
    maps: Maps,
    contents: Contents,
    facts: Facts,
    view: Option<Arc<NodeView>>,
    /// The newest generation of which nothing is left to be written.
    carried: u64,
    resting: Vec<(Instant, Range<u32>)>,
    address_indexes: BTreeSet<u32>,
    ramps: Ramps,
    refused: BTreeSet<Refusal>,
    /// Whether a backend has gone since [`State::take_gone`].
    has_gone: bool,
    /// Whether the maps hold what view and facts demand, so that there is nothing to plan.
    is_settled: bool,
    published: Arc<Published>,
    /// Whether the published outline is that of the maps.
    is_published: bool,
}

impl State {
    /// Starts with the maps' contents.
    ///
    /// # Errors
    /// A map can't be read.
    pub(super) fn read(maps: Maps, published: Arc<Published>) -> Result<Self, DatapathError> {
        let contents = maps.read()?;
        published.publish(&contents);
        Ok(Self {
            maps,
            facts: Facts::of_earlier_agent(&contents),
            contents,
            view: None,
            carried: 0,
            resting: Vec::new(),
            address_indexes: BTreeSet::new(),
            ramps: Ramps::default(),
            refused: BTreeSet::new(),
            has_gone: false,
            is_settled: false,
            published,
            is_published: true,
        })
    }

    /// The contents of the maps.
    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// What this node knows by itself.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The view in force, or the one still being applied.
    pub(super) fn view(&self) -> Option<&NodeView> {
        self.view.as_deref()
    }

    /// The address of a task, if the view holds it.
    pub(super) fn address_of(&self, task: &TaskId) -> Option<Address> {
        let backends = self.view.as_ref()?.backends.values();
        backends.into_iter().find(|backend| backend.task_id == *task).map(|backend| backend.address.into())
    }

    /// Takes a newer view. The next [`reconcile`](Self::reconcile) applies it.
    pub(super) fn set_view(&mut self, view: Arc<NodeView>, now: Instant) {
        let is_known = self.view.as_ref().is_some_and(|present| Arc::ptr_eq(present, &view));
        if view.generation == 0 || is_known {
            return;
        }
        let named: BTreeSet<Address> =
            view.backends.values().map(|backend| Address::from(backend.address)).collect();
        self.facts
            .ports
            .retain(|address, port| matches!(port, TaskPort::Attached { .. }) || named.contains(address));
        self.ramps.observe(&view, now);
        self.view = Some(view);
        self.is_settled = false;
        self.raise_weights(now);
    }

    /// Computes the weights in slow start again.
    pub(super) fn raise_weights(&mut self, now: Instant) {
        let Some(view) = self.view.clone() else { return };
        let slow_start = |backend: &Weighted<'_>| {
            view.services.get(backend.service_id).map_or(0, |service| service.lb.slow_start_s)
        };
        let weights = view
            .weighted()
            .filter(|backend| self.ramps.rises(backend.id, slow_start(backend), now))
            .map(|backend| {
                let weight = self.ramps.weight(backend.id, backend.weight, slow_start(&backend), now);
                (backend.id.get(), weight)
            })
            .collect();
        self.change_facts(|facts| facts.weights = weights);
    }

    /// Writes loads that are known since `seen_ns`, where the maps hold nothing younger than
    /// `age_ns` before that.
    ///
    /// # Errors
    /// The map can't be read or written.
    pub(super) fn note_loads(
        &mut self,
        loads: &[(BackendId, u8)],
        seen_ns: u64,
        age_ns: u64,
    ) -> Result<(), DatapathError> {
        for (id, level) in loads {
            let known = self.maps.load(id.get());
            let known = self.counted(known)?;
            if known.load != 0 && known.seen_ns.saturating_add(age_ns) > seen_ns {
                continue;
            }
            let load = BackendLoad { seen_ns, load: u32::from(*level), ..BackendLoad::default() };
            let written = self.maps.set_load(id.get(), load);
            self.counted(written)?;
        }
        Ok(())
    }

    /// Changes the node's own facts. The next [`reconcile`](Self::reconcile) applies them.
    pub(super) fn change_facts(&mut self, change: impl FnOnce(&mut Facts)) {
        let before = self.facts.clone();
        change(&mut self.facts);
        self.is_settled &= before == self.facts;
    }

    /// Leaves exactly these ports to the host. The next [`reconcile`](Self::reconcile) applies it.
    /// Returns the changed ports that maps or view have: most ports of a host are no service's.
    pub(super) fn leave_to_host(&mut self, ports: BTreeSet<Frontend>) -> Vec<Frontend> {
        let published = self.view.iter().flat_map(|view| view.frontends());
        let known: BTreeSet<Frontend> =
            published.map(|(_, port)| frontend(port.protocol, port.published)).collect();
        let is_known = |port: &Frontend| {
            known.contains(port) || self.contents.services.contains_key(&Front::Port(*port))
        };
        let changed = self.facts.host_ports.symmetric_difference(&ports).copied();
        let changed: Vec<Frontend> = changed.filter(is_known).collect();
        self.is_settled &= changed.is_empty();
        self.facts.host_ports = ports;
        changed
    }

    /// Whether a backend has gone since the last call.
    pub(super) fn take_gone(&mut self) -> bool {
        std::mem::take(&mut self.has_gone)
    }

    /// The terms of a sweep at `now_ns`.
    pub(super) fn terms(&self, now_ns: u64) -> ExpiryInputs {
        let alive = self.contents.alive().map(|(id, _)| id).collect();
        let idle_ns = self.view.iter().flat_map(|view| {
            view.weighted().filter_map(|backend| {
                let seconds = view.services.get(backend.service_id)?.lb.idle_timeout_s?;
                Some((backend.id.get(), u64::from(seconds.get()) * 1_000_000_000))
            })
        });
        ExpiryInputs { alive, idle_ns: idle_ns.collect(), now_ns }
    }

    /// The owners of the flows that a sweep counts: every backend in the maps, gone or not.
    pub(super) fn owners(&self) -> BTreeMap<u32, Owner> {
        let owner =
            |backend: &Backend| Owner { protocol: backend.protocol, service_index: backend.service_index };
        self.contents.backends.iter().map(|(id, backend)| (*id, owner(backend))).collect()
    }

    /// This node's address with an index.
    pub(super) fn address_with_index(&self, index: u32) -> Option<Address> {
        self.contents.addresses.iter().find(|(_, found)| **found == index).map(|(address, _)| *address)
    }

    /// Stores the address indexes that flows name: they are not given to other addresses.
    pub(super) fn hold_address_indexes(&mut self, indexes: BTreeSet<u32>) {
        self.address_indexes = indexes;
    }

    /// Reads the maps back into the mirror.
    ///
    /// # Errors
    /// A map can't be read; the mirror stays.
    pub(super) fn resync(&mut self) -> Result<(), DatapathError> {
        let contents = self.maps.read();
        let contents = self.counted(contents)?;
        for map in contents.differing(&self.contents) {
            error!(map, "another program changed the map: restoring it");
            self.published.count(map, "drift");
        }
        self.contents = contents;
        self.is_settled = false;
        self.is_published = false;
        Ok(())
    }

    /// Writes what is missing, and returns the generation that the maps now follow. It is older
    /// than the view's while a part of the view is still to be written.
    ///
    /// # Errors
    /// A map refuses a write; the rest waits for the next attempt.
    pub(super) fn reconcile(&mut self, now: Instant) -> Result<u64, DatapathError> {
        let written = self.write(now, PLANS_MAX);
        if !std::mem::replace(&mut self.is_published, true) {
            self.published.publish(&self.contents);
        }
        written
    }

    /// Carries out at most `plans_max` plans.
    fn write(&mut self, now: Instant, plans_max: usize) -> Result<u64, DatapathError> {
        let mut is_carried = self.is_settled;
        for _ in 0..plans_max {
            if is_carried {
                break;
            }
            self.resting.retain(|(since, _)| now.duration_since(*since) < SLOTS_REST);
            let held = Held {
                slots: self.resting.iter().map(|(_, range)| range.clone()).collect(),
                address_indexes: self.address_indexes.clone(),
            };
            let plan = plan(&self.contents, self.view.as_deref(), &self.facts, &held);
            is_carried = !plan.again;
            self.carry_out(plan, now)?;
            self.is_settled = is_carried && self.refused.is_empty();
        }
        let newest = self.view.as_ref().map(|view| view.generation).unwrap_or_default();
        if is_carried {
            self.carried = newest;
        } else {
            warn!(newest, carried = self.carried, "a part of the table waits for room in the maps");
        }
        Ok(self.carried)
    }

    fn carry_out(&mut self, plan: Plan, now: Instant) -> Result<(), DatapathError> {
        // Before the writes: if one fails, the swaps before it have freed their slots all the same.
        self.resting.extend(plan.freed.into_iter().map(|range| (now, range)));
        for write in &plan.writes {
            let written = self.maps.write(write);
            self.counted(written)?;
            self.contents.apply(write);
            self.is_published = false;
            self.has_gone |= matches!(write, Write::Backend(_, backend) if !backend.is_alive());
        }
        let followed = self.maps.follow_durations(&self.contents);
        self.counted(followed)?;
        if !plan.writes.is_empty() {
            info!(writes = plan.writes.len(), services = self.contents.services.len(), "maps written");
        }
        let refused: BTreeSet<Refusal> = plan.refused.into_iter().collect();
        for refusal in refused.difference(&self.refused) {
            error!(map = refusal.map(), "the map is full: left out {refusal}; all else is in force");
            self.published.count(refusal.map(), "update");
        }
        self.refused = refused;
        Ok(())
    }

    fn counted<T>(&self, result: Result<T, DatapathError>) -> Result<T, DatapathError> {
        self.published.counted(result)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use mesh_state::ids::NodeId;
    use mesh_state::proto;

    use super::super::tallies::Tallies;
    use super::super::testing::pinned;
    use super::*;

    const HERE: &str = "10.77.0.11";

    /// One service whose backend 7 is the task with this address.
    fn view(generation: u64, task: &str) -> Arc<NodeView> {
        let node = |id: &str, address: &str| proto::MeshNode {
            id: id.into(),
            address: address.into(),
            ..proto::MeshNode::default()
        };
        let backend = proto::MeshBackend {
            id: 7,
            service_id: "s".into(),
            task_id: task.into(),
            node_id: "there".into(),
            address: task.into(),
            protocol: "tcp".into(),
            published: 80,
            target: 8080,
            state: proto::BackendState::Active.into(),
            weight: 1,
            ..proto::MeshBackend::default()
        };
        let table = proto::MeshTable {
            generation,
            nodes: vec![node("here", HERE), node("there", "10.77.0.12")],
            services: vec![proto::MeshService {
                id: "s".into(),
                policy: "round-robin".into(),
                ports: vec![proto::MeshPort { protocol: "tcp".into(), published: 80, target: 8080 }],
                ..proto::MeshService::default()
            }],
            backends: vec![backend],
            ..proto::MeshTable::default()
        };
        let here: Ipv4Addr = HERE.parse().expect("an address");
        Arc::new(NodeView::new(NodeId::from("here"), here).apply(&table).expect("a good table"))
    }

    #[test]
    fn a_table_that_is_partly_written_does_not_count() {
        let Some(pins) = pinned("part") else { return };
        let tallies = Arc::new(Mutex::new(Tallies::open(&pins).expect("the maps are pinned")));
        let maps = Maps::open(&pins, tallies).expect("the maps are pinned");
        let published = Arc::<Published>::default();
        let mut state = State::read(maps, Arc::clone(&published)).expect("the maps are read");
        let now = Instant::now();
        state.set_view(view(1, "10.128.1.2"), now);
        assert_eq!(state.reconcile(now).expect("it is written"), 1);
        let address = |state: &State| state.contents().backends.get(&7).map(|backend| backend.task_address);
        let [before, after] = ["10.128.1.2", "10.128.1.3"]
            .map(|task: &str| Some(Address::from(task.parse::<Ipv4Addr>().expect("an address"))));
        assert_eq!(address(&state), before);

        // In the next table the id of one task is another's: the first task must leave the maps
        // before.
        state.set_view(view(2, "10.128.1.3"), now);
        assert_eq!(state.write(now, 1).expect("a part is written"), 1, "the rest is yet to come");
        assert_eq!(address(&state), before);
        assert_eq!(state.reconcile(now).expect("the rest is written"), 2);
        assert_eq!(address(&state), after);
        let outline = published.outline();
        assert_eq!(
            outline
                .backends
                .iter()
                .map(|(id, backend)| (*id, Some(backend.task_address)))
                .collect::<Vec<_>>(),
            [(7, after)]
        );
    }
}
