//! How the node follows its mesh tables: how long a change takes to carry traffic, and how often
//! policies change.
//!
//! Invariant: one component counts; a scrape only reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_state::ids::ServiceId;
use mesh_state::lb::Policy;
use mesh_state::shared::{Shared, differing};
use prometheus::{HistogramOpts, HistogramVec, Registry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::view::{NodeView, ServiceView};

/// Bounds of the propagation histogram, in seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The counters of this module.
#[derive(Debug, Clone)]
pub struct Progress {
    propagation: HistogramVec,
    policies: Arc<Mutex<PolicyChanges>>,
}

impl Progress {
    /// Counters at zero; the histogram is registered in `registry`.
    ///
    /// # Errors
    /// The registry has a metric of that name.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let options = HistogramOpts::new(
            "mesh_config_propagation_seconds",
            "Time from the commit of a change to its carrying traffic on this node.",
        )
        .buckets(BUCKETS.to_vec());
        let propagation = HistogramVec::new(options, &["kind"])?;
        registry.register(Box::new(propagation.clone()))?;
        Ok(Self { propagation, policies: Arc::default() })
    }

    /// Counts the changes of `applied` and `view` until `shutdown`.
    pub async fn follow(
        self,
        mut view: watch::Receiver<Arc<NodeView>>,
        mut applied: watch::Receiver<u64>,
        shutdown: CancellationToken,
    ) {
        // The table with which the agent starts was committed long ago.
        let mut carried = Arc::clone(&view.borrow());
        loop {
            let newest = Arc::clone(&view.borrow_and_update());
            self.policies.lock().unwrap_or_else(PoisonError::into_inner).observe(&newest);
            let generation = *applied.borrow_and_update();
            if generation == newest.generation && generation > carried.generation {
                // A manager may send a new generation without any change.
                if !newest.has_same_entries(&carried) {
                    let propagation = self.propagation.with_label_values(&["table"]);
                    propagation.observe(seconds_since(newest.committed_unix_ms));
                }
                carried = newest;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = view.changed() => if changed.is_err() { return },
                changed = applied.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The number of policy changes of each service.
    pub fn policy_changes(&self) -> BTreeMap<ServiceId, u64> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner).counts()
    }
}

/// Never less than nothing: the clock may have been put back.
fn seconds_since(unix_ms: i64) -> f64 {
    let passed = chrono::Utc::now().timestamp_millis().saturating_sub(unix_ms);
    Duration::from_millis(passed.max(0).cast_unsigned()).as_secs_f64()
}

/// The policies as last seen, and how often each changed.
#[derive(Debug, Default)]
struct PolicyChanges {
    services: BTreeMap<ServiceId, (Policy, u64)>,
    /// The services of the view that was observed last.
    seen: Shared<BTreeMap<ServiceId, ServiceView>>,
}

impl PolicyChanges {
    fn observe(&mut self, view: &NodeView) {
        let has_same_policy = |one: &ServiceView, other: &ServiceView| one.lb.policy == other.lb.policy;
        for (id, service) in differing(&self.seen, &view.services, has_same_policy) {
            let Some(ServiceView { lb, .. }) = service else {
                self.services.remove(id);
                continue;
            };
            let (policy, changes) = self.services.entry(id.clone()).or_insert((lb.policy, 0));
            if *policy != lb.policy {
                *policy = lb.policy;
                *changes += 1;
            }
        }
        self.seen = view.services.clone();
    }

    fn counts(&self) -> BTreeMap<ServiceId, u64> {
        self.services.iter().map(|(id, (_, changes))| (id.clone(), *changes)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_state::ids::NodeId;
    use mesh_state::proto;

    use super::*;

    fn view(policy: Option<&str>) -> NodeView {
        let service = |policy: &str| proto::MeshService {
            id: "s".into(),
            policy: policy.into(),
            ..proto::MeshService::default()
        };
        let table = proto::MeshTable {
            generation: 1,
            services: policy.map(service).into_iter().collect(),
            ..proto::MeshTable::default()
        };
        NodeView::new(NodeId::from("n"), Ipv4Addr::LOCALHOST).apply(&table).expect("a good table")
    }

    #[test]
    fn switches_are_counted_per_service_while_it_lives() {
        let mut changes = PolicyChanges::default();
        let count = |changes: &PolicyChanges| changes.counts().get(&ServiceId::from("s")).copied();
        for (policy, expected) in [
            (Some("round-robin"), Some(0)),
            (Some("round-robin"), Some(0)),
            (Some("least-connections"), Some(1)),
            (Some("round-robin"), Some(2)),
            (None, None),
            (Some("round-robin"), Some(0)),
        ] {
            changes.observe(&view(policy));
            assert_eq!(count(&changes), expected, "after {policy:?}");
        }
    }

    #[tokio::test]
    async fn only_tables_that_came_after_the_start_are_timed() {
        let registry = Registry::new();
        let progress = Progress::new(&registry).expect("a fresh registry");
        let (view_sender, views) = watch::channel(Arc::new(view(None)));
        let (applied, carried) = watch::channel(0);
        let shutdown = CancellationToken::new();
        let follower = tokio::spawn(progress.clone().follow(views, carried, shutdown.clone()));
        let samples = || progress.propagation.with_label_values(&["table"]).get_sample_count();
        applied.send_replace(1);
        tokio::task::yield_now().await;
        assert_eq!(samples(), 0, "the cached table is not timed");
        let settle = async || {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        view_sender.send_modify(|view| Arc::make_mut(view).generation = 2);
        applied.send_replace(2);
        settle().await;
        assert_eq!(samples(), 0, "a generation that says nothing new is not timed");
        view_sender.send_modify(|current| {
            *current = Arc::new(NodeView { generation: 3, ..view(Some("round-robin")) });
        });
        applied.send_replace(3);
        settle().await;
        assert_eq!(samples(), 1, "the next change is");
        shutdown.cancel();
        follower.await.expect("the follower ends");
    }
}
