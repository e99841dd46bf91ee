//! Which backend a new proxied connection gets: the kernel programs' rules, for the userspace proxy.
//!
//! Invariants: pure; a [`Selector`] is built from one view and replaced as a whole. Work for one selection doesn't grow with the
//! number of backends, unless backends refuse.
//!
//! Left to others: counting turns and live connections (`proxy::ledger`), connecting. The kernel's selection stands over the
//! kernel's maps (`mesh_ebpf::select`); what both share is the rule: slots of the best state, a weight of n is n slots.

pub mod loads;
pub mod ramp;
pub mod slots;

use std::collections::BTreeMap;

use mesh_state::ids::{BackendId, ServiceId};
use mesh_state::lb::Policy;
use mesh_state::spec::Protocol;

use crate::view::{BackendState, BackendView, NodeView, PortView};

/// A published port and the backends that new connections may get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The service.
    pub service: ServiceId,
    /// The published port.
    pub port: PortView,
    /// How a backend is selected.
    pub policy: Policy,
    /// Backends in the best state that any has, each as often as its weight says.
    pub slots: Vec<BackendId>,
}

/// Every published port of one view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    frontends: BTreeMap<(Protocol, u16), Frontend>,
}

/// What a selection stands on beside the slots.
pub struct Odds<'a> {
    /// How many turns the published port has had before this one.
    pub turn: u64,
    /// Random numbers.
    pub random: &'a mut dyn FnMut() -> u32,
    /// Live connections of a backend.
    pub live: &'a dyn Fn(BackendId) -> u64,
    /// Backends that have just refused this connection.
    pub refused: &'a [BackendId],
}

impl Selector {
    /// The selector of a view.
    pub fn new(view: &NodeView) -> Self {
        let frontends = view
            .frontends_with_backends()
            .map(|(service, port, backends)| {
                let frontend = Frontend {
                    service: service.id.clone(),
                    port,
                    policy: service.lb.policy,
                    slots: slots(&backends),
                };
                ((port.protocol, port.published), frontend)
            })
            .collect();
        Self { frontends }
    }

    /// The published port, if there is one.
    pub fn frontend(&self, protocol: Protocol, published: u16) -> Option<&Frontend> {
        self.frontends.get(&(protocol, published))
    }
}

impl Frontend {
    /// The backend for a new connection; `None` if there is none, or all have refused.
    pub fn select(&self, odds: &mut Odds<'_>) -> Option<BackendId> {
        let count = self.slots.len();
        let first = match self.policy {
            _ if count == 0 => return None,
            Policy::RoundRobin => reduce(odds.turn, count),
            Policy::Random => reduce((odds.random)().into(), count),
            Policy::LeastConnections | Policy::LeastLoad | Policy::SourceHash => {
                self.less_loaded_of_two(odds)
            }
        };
        self.slots[first..].iter().chain(&self.slots[..first]).find(|id| !odds.refused.contains(id)).copied()
    }

    /// Draws two distinct slots and takes that with fewer live connections.
    fn less_loaded_of_two(&self, odds: &mut Odds<'_>) -> usize {
        let count = self.slots.len();
        let first = reduce((odds.random)().into(), count);
        if count == 1 {
            return first;
        }
        let second = (first + 1 + reduce((odds.random)().into(), count - 1)) % count;
        let load = |slot: usize| (odds.live)(self.slots[slot]);
        if load(second) < load(first) { second } else { first }
    }
}

/// `number` modulo `count`, which is not zero.
fn reduce(number: u64, count: usize) -> usize {
    usize::try_from(number % count as u64).unwrap_or_default()
}

fn slots(backends: &[&BackendView]) -> Vec<BackendId> {
    let best: Option<BackendState> = backends.iter().map(|backend| backend.state).min();
    let usable: Vec<_> = backends.iter().filter(|backend| Some(backend.state) == best).collect();
    let rounds = usable.iter().map(|backend| backend.weight.get()).max().unwrap_or_default();
    // Round by round, so that a heavy backend doesn't get its turns in a row.
    (0..rounds)
        .flat_map(|round| usable.iter().filter(move |backend| backend.weight.get() > round))
        .map(|backend| backend.id)
        .collect()
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
        Selector::new(&view)
    }

    fn pick(selector: &Selector, turn: u64, live: &dyn Fn(BackendId) -> u64, refused: &[u32]) -> Option<u32> {
        let refused: Vec<_> = refused.iter().filter_map(|id| BackendId::new(*id)).collect();
        let mut random = rand::random::<u32>;
        let mut odds = Odds { turn, random: &mut random, live, refused: &refused };
        selector.frontend(Protocol::Tcp, 80)?.select(&mut odds).map(BackendId::get)
    }

    use proto::BackendState::{Active, Draining, Silent};

    #[test]
    fn round_robin_takes_turns_by_weight() {
        let selector = selector("round-robin", &[(1, Active, 1), (2, Active, 2), (3, Active, 1)]);
        let picks: Vec<_> = (0..8).filter_map(|turn| pick(&selector, turn, &|_| 0, &[])).collect();
        assert_eq!(picks, [1, 2, 3, 2, 1, 2, 3, 2]);
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
