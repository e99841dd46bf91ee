//! Slow start: the weight of a backend rises from almost nothing to its full value over the first
//! seconds of its life.
//!
//! Pure: the time is an input. Invariants: backends of the first view are old; a backend's life
//! begins when it is first seen active here; weights of all backends are in the same unit, [`UNIT`]
//! for a weight of 1.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use mesh_state::ids::BackendId;

use crate::view::{BackendState, NodeView};

/// A full weight of 1. A rising weight grows in steps of one sixteenth of it.
pub const UNIT: u32 = 16;

/// When each backend was first seen active.
#[derive(Debug, Clone, Default)]
pub struct Ramps {
    is_begun: bool,
    /// `None` for backends that were there in the first view.
    since: BTreeMap<BackendId, Option<Instant>>,
}

impl Ramps {
    /// Records which backends are active in a view that is about to be applied, and drops those
    /// that are gone.
    pub fn observe(&mut self, view: &NodeView, now: Instant) {
        let known: BTreeSet<BackendId> = view.weighted().map(|backend| backend.id).collect();
        self.since.retain(|id, _| known.contains(id));
        let since = self.is_begun.then_some(now);
        for backend in view.weighted().filter(|backend| backend.state == BackendState::Active) {
            self.since.entry(backend.id).or_insert(since);
        }
        self.is_begun = true;
    }

    /// The weight of a backend now, in [`UNIT`]s, if it is to have the weight `full` and its
    /// service's weights rise over `slow_start_s` seconds.
    pub fn weight(&self, id: BackendId, full: NonZeroU32, slow_start_s: u32, now: Instant) -> u32 {
        let full = u64::from(full.get()) * u64::from(UNIT);
        let rise = Duration::from_secs(slow_start_s.into()).as_millis();
        let weight = match self.age(id, now) {
            Some(age) if age.as_millis() < rise => u128::from(full) * age.as_millis() / rise,
            _ => full.into(),
        };
        u32::try_from(weight).unwrap_or(u32::MAX).max(1)
    }

    /// Whether the weight of a backend is still rising.
    pub fn rises(&self, id: BackendId, slow_start_s: u32, now: Instant) -> bool {
        let rise = Duration::from_secs(slow_start_s.into());
        self.age(id, now).is_some_and(|age| age < rise)
    }

    /// Whether any weight is still rising.
    pub fn is_rising(&self, view: &NodeView, now: Instant) -> bool {
        view.weighted().any(|backend| {
            let service = view.services.get(backend.service_id);
            self.rises(backend.id, service.map_or(0, |service| service.lb.slow_start_s), now)
        })
    }

    fn age(&self, backend: BackendId, now: Instant) -> Option<Duration> {
        let since = self.since.get(&backend).copied().flatten()?;
        Some(now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_state::ids::NodeId;
    use mesh_state::proto;

    use super::*;

    fn view(ids: &[u32]) -> NodeView {
        let table = proto::MeshTable {
            generation: 1,
            services: vec![proto::MeshService {
                id: "s".into(),
                policy: "round-robin".into(),
                ..proto::MeshService::default()
            }],
            backends: ids
                .iter()
                .map(|id| proto::MeshBackend {
                    id: *id,
                    service_id: "s".into(),
                    address: "10.128.0.2".into(),
                    protocol: "tcp".into(),
                    published: 80,
                    target: 8080,
                    state: proto::BackendState::Active.into(),
                    weight: 2,
                    ..proto::MeshBackend::default()
                })
                .collect(),
            ..proto::MeshTable::default()
        };
        NodeView::new(NodeId::from("n"), Ipv4Addr::LOCALHOST).apply(&table).expect("a good table")
    }

    #[test]
    fn a_new_backend_rises_to_its_weight_and_the_old_ones_stay() {
        let start = Instant::now();
        let mut ramps = Ramps::default();
        ramps.observe(&view(&[1]), start);
        let grown = view(&[1, 2]);
        ramps.observe(&grown, start);
        let weights = |seconds| {
            let now = start + Duration::from_secs(seconds);
            [1, 2].map(|id| {
                let backend = &grown.backends[&BackendId::new(id).expect("an id")];
                ramps.weight(backend.id, backend.weight, 10, now)
            })
        };
        assert_eq!(weights(0), [32, 1]);
        assert_eq!(weights(5), [32, 16]);
        assert_eq!(weights(10), [32, 32]);
        let rises = |id, seconds| {
            let id = BackendId::new(id).expect("an id");
            ramps.rises(id, 10, start + Duration::from_secs(seconds))
        };
        assert!(!rises(1, 0), "what was there from the beginning is old");
        assert!(rises(2, 9) && !rises(2, 10));
    }
}
