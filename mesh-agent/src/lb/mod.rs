//! Selects the backend of a new proxied connection, in userspace by the same rules as the kernel
//! programs.
//!
//! Invariants: pure; a [`Selector`] is built from one view and replaced as a whole. Slots come from
//! [`slots`] and the choice from [`mesh_ebpf::select`], as for the programs. The cost of one
//! selection doesn't grow with the number of backends, unless backends refuse.
//!
//! Left to others: counting turns and live connections ([`crate::proxy`]), connecting.

pub mod health;
pub mod loads;
pub mod ramp;
pub mod slots;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use mesh_ebpf::abi::Service;
use mesh_ebpf::select::{Candidates, select};
use mesh_state::ids::{BackendId, ServiceId};
use mesh_state::lb::LbSettings;
use mesh_state::spec::Protocol;

use crate::codes;
use crate::view::{BackendView, NodeView, PortView};
use ramp::Ramps;
use slots::{Candidate, compose};

/// A published port, and the backends that can get new connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The service's id.
    pub service: ServiceId,
    /// The published port.
    pub port: PortView,
    /// The load-balancing settings from the service's labels.
    pub settings: LbSettings,
    slots: Vec<u32>,
    weights: HashMap<u32, u32>,
}

/// Every published port of one view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    frontends: BTreeMap<(Protocol, u16), Frontend>,
}

/// The inputs of one selection, beside the slots.
pub struct SelectionInput<'a> {
    /// The number of earlier selections for the published port.
    pub turn: u64,
    /// The client's address.
    pub client: IpAddr,
    /// Returns the number of live connections of a backend.
    pub live: &'a dyn Fn(BackendId) -> u64,
    /// Returns the load that a backend's node measured, 1 (idle) to 127 (saturated), if a recent
    /// one is known.
    pub load: &'a dyn Fn(BackendId) -> Option<u8>,
    /// Backends that have just refused this connection.
    pub refused: &'a [BackendId],
}

impl Selector {
    /// The selector of a view, with the backends' weights at `now`, and without backends that are
    /// `ejected`.
    pub fn new(view: &NodeView, ramps: &Ramps, ejected: &BTreeSet<BackendId>, now: Instant) -> Self {
        let frontends = view
            .frontends_with_backends()
            .map(|(service, port, backends)| {
                let candidate = |backend: &&BackendView| Candidate {
                    id: backend.id.get(),
                    state: backend.state,
                    weight: ramps.weight(backend.id, backend.weight, service.lb.slow_start_s, now),
                    is_local: view.is_local(backend),
                };
                let is_left = |backend: &&&BackendView| !ejected.contains(&backend.id);
                let candidates: Vec<Candidate> = backends.iter().filter(is_left).map(candidate).collect();
                let frontend = Frontend::new(service.id.clone(), port, &service.lb, &candidates);
                ((port.protocol, port.published), frontend)
            })
            .collect();
        Self { frontends }
    }

    /// A published port of the view, if it is published.
    pub fn frontend(&self, protocol: Protocol, published: u16) -> Option<&Frontend> {
        self.frontends.get(&(protocol, published))
    }

    /// Every published port.
    pub fn into_frontends(self) -> impl Iterator<Item = Frontend> {
        self.frontends.into_values()
    }
}

impl Frontend {
    fn new(service: ServiceId, port: PortView, settings: &LbSettings, candidates: &[Candidate]) -> Self {
        Self {
            service,
            port,
            settings: settings.clone(),
            slots: compose(settings.policy, settings.prefer_local, candidates),
            weights: candidates.iter().map(|candidate| (candidate.id, candidate.weight)).collect(),
        }
    }

    /// Whether the service's allow-list admits a client with this address.
    pub fn admits(&self, client: IpAddr) -> bool {
        self.settings.allow.is_empty() || self.settings.allow.iter().any(|network| network.contains(&client))
    }

    /// The backend for a new connection; `None` if there is none, or all have refused.
    pub fn select(&self, input: &SelectionInput<'_>) -> Option<BackendId> {
        let avoided = input.refused.last().map_or(0, |id| id.get());
        let chosen = self.choose(&self.slots, input, avoided)?;
        if !input.refused.contains(&chosen) {
            return Some(chosen);
        }
        let is_left = |id: &u32| !input.refused.iter().any(|refused| refused.get() == *id);
        let left: Vec<u32> = self.slots.iter().copied().filter(is_left).collect();
        self.choose(&left, input, 0)
    }

    fn choose(&self, slots: &[u32], input: &SelectionInput<'_>, avoided: u32) -> Option<BackendId> {
        let service = Service {
            slot_count: u32::try_from(slots.len()).unwrap_or(u32::MAX),
            policy: codes::policy(self.settings.policy) as u8,
            ..Service::default()
        };
        let table = Table { slots, weights: &self.weights, input };
        select(&table, &service, &input.client.into(), avoided).and_then(BackendId::new)
    }
}

/// Gives [`select`] access to a view and a ledger.
struct Table<'a> {
    slots: &'a [u32],
    weights: &'a HashMap<u32, u32>,
    input: &'a SelectionInput<'a>,
}

impl Candidates for Table<'_> {
    fn random(&self) -> u32 {
        rand::random()
    }

    fn next_turn(&self, _service_index: u32) -> u64 {
        self.input.turn
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(usize::try_from(index).ok()?).copied()
    }

    /// Slots hold only backends that the view holds.
    fn is_alive(&self, _id: u32) -> bool {
        true
    }

    fn weight(&self, id: u32) -> u32 {
        self.weights.get(&id).copied().unwrap_or(1).max(1)
    }

    fn live(&self, id: u32) -> u64 {
        BackendId::new(id).map_or(0, self.input.live)
    }

    fn load(&self, id: u32) -> Option<u32> {
        BackendId::new(id).and_then(self.input.load).map(u32::from)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_state::ids::NodeId;
    use mesh_state::proto;
    use proptest::prelude::*;

    use super::*;

    /// A service on port 80 with backends of (id, state, weight).
    fn selector(policy: &str, backends: &[(u32, proto::BackendState, u32)]) -> Selector {
        let port = proto::MeshPort { protocol: "tcp".into(), published: 80, target: 8080 };
        let table = proto::MeshTable {
            generation: 1,
            services: vec![proto::MeshService {
                id: "s".into(),
                name: "web".into(),
                policy: policy.into(),
                ports: vec![port],
                ..proto::MeshService::default()
            }],
            backends: backends
                .iter()
                .map(|(id, state, weight)| proto::MeshBackend {
                    id: *id,
                    service_id: "s".into(),
                    address: "10.128.0.2".into(),
                    protocol: "tcp".into(),
                    published: 80,
                    target: 8080,
                    state: (*state).into(),
                    weight: *weight,
                    ..proto::MeshBackend::default()
                })
                .collect(),
            ..proto::MeshTable::default()
        };
        let view = NodeView::new(NodeId::from("n"), Ipv4Addr::LOCALHOST).apply(&table).expect("a good table");
        Selector::new(&view, &Ramps::default(), &BTreeSet::new(), Instant::now())
    }

    fn pick(selector: &Selector, turn: u64, live: &dyn Fn(BackendId) -> u64, refused: &[u32]) -> Option<u32> {
        let refused: Vec<_> = refused.iter().filter_map(|id| BackendId::new(*id)).collect();
        let client = Ipv4Addr::LOCALHOST.into();
        let input = SelectionInput { turn, client, live, load: &|_| None, refused: &refused };
        selector.frontend(Protocol::Tcp, 80)?.select(&input).map(BackendId::get)
    }

    use proto::BackendState::{Active, Draining, Silent};

    #[test]
    fn round_robin_takes_turns_by_weight() {
        let selector = selector("round-robin", &[(1, Active, 1), (2, Active, 2), (3, Active, 1)]);
        let picks: Vec<_> = (0..8).filter_map(|turn| pick(&selector, turn, &|_| 0, &[])).collect();
        assert_eq!(picks, [2, 1, 3, 2, 2, 1, 3, 2]);
    }

    #[test]
    fn the_best_state_that_any_backend_has_is_used() {
        type Case<'a> = (&'a [(u32, proto::BackendState, u32)], Option<u32>);
        let cases: [Case; 4] = [
            (&[(1, Silent, 1), (2, Draining, 1), (3, Active, 1)], Some(3)),
            (&[(1, Silent, 1), (2, Draining, 1)], Some(2)),
            (&[(1, Silent, 1)], Some(1)),
            (&[], None),
        ];
        for (backends, expected) in cases {
            let selector = selector("round-robin", backends);
            for turn in 0..3 {
                assert_eq!(pick(&selector, turn, &|_| 0, &[]), expected, "turn {turn} of {backends:?}");
            }
        }
    }

    #[test]
    fn a_backend_that_refused_is_passed_over_until_none_is_left() {
        for policy in ["round-robin", "least-connections"] {
            let selector = selector(policy, &[(1, Active, 1), (2, Active, 1)]);
            for turn in 0..4 {
                assert_eq!(pick(&selector, turn, &|_| 0, &[1]), Some(2), "{policy}, turn {turn}");
                assert_eq!(pick(&selector, turn, &|_| 0, &[1, 2]), None, "{policy}, turn {turn}");
            }
        }
    }

    #[test]
    fn least_connections_never_takes_the_most_loaded() {
        let selector = selector("least-connections", &[(1, Active, 1), (2, Active, 1), (3, Active, 1)]);
        let live = |id: BackendId| if id.get() == 2 { 50 } else { 0 };
        let mut seen = [0_u32; 4];
        for turn in 0..200 {
            let id = pick(&selector, turn, &live, &[]).expect("a backend");
            seen[id as usize] += 1;
        }
        assert_eq!(seen[2], 0, "the loaded backend got connections: {seen:?}");
        assert!(seen[1] > 50 && seen[3] > 50, "the others share: {seen:?}");
    }

    proptest! {
        /// Over one full turn round-robin gives each backend its weight, whatever the weights.
        #[test]
        fn a_full_turn_gives_each_its_weight(weights in proptest::collection::vec(1u32..6, 1..10)) {
            let backends: Vec<_> =
                weights.iter().zip(1..).map(|(weight, id)| (id, Active, *weight)).collect();
            let selector = selector("round-robin", &backends);
            let total: u32 = weights.iter().sum();
            for (expected, id) in weights.iter().zip(1u32..) {
                let picks = (0..u64::from(total)).filter(|turn| {
                    pick(&selector, *turn, &|_| 0, &[]) == Some(id)
                });
                prop_assert_eq!(picks.count(), *expected as usize, "picks of backend {}", id);
            }
        }
    }
}
