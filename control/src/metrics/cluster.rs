//! Metrics of the cluster, from the leader. Other managers export only that they don't lead, so
//! that a sum over all managers counts once.

use std::collections::BTreeMap;

use mesh_state::node::NodeState;
use mesh_state::task::TaskState;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use tokio::sync::watch;

use crate::feed::snapshot::ClusterSnapshot;
use crate::feed::watch::Feed;
use crate::leader::election::Leadership;

/// Collects from the snapshot at each scrape.
struct ClusterCollector {
    feed: Feed,
    leadership: watch::Receiver<Option<Leadership>>,
    leader: IntGauge,
    nodes: IntGaugeVec,
    tasks: IntGaugeVec,
    tasks_desired: IntGaugeVec,
}

/// Registers `mesh_leader`, `mesh_nodes`, `mesh_service_tasks` and `mesh_service_tasks_desired`.
///
/// # Errors
/// A family of the same name is already registered.
pub fn register(
    feed: Feed,
    leadership: watch::Receiver<Option<Leadership>>,
    registry: &Registry,
) -> Result<(), prometheus::Error> {
    let by_service = ["service", "state"];
    let tasks = Opts::new("mesh_service_tasks", "Tasks of a service by observed state; leader only.");
    let desired =
        Opts::new("mesh_service_tasks_desired", "Tasks of a service by desired state; leader only.");
    registry.register(Box::new(ClusterCollector {
        feed,
        leadership,
        leader: IntGauge::new("mesh_leader", "1 on the manager that leads.")?,
        nodes: IntGaugeVec::new(Opts::new("mesh_nodes", "Nodes by state; leader only."), &["state"])?,
        tasks: IntGaugeVec::new(tasks, &by_service)?,
        tasks_desired: IntGaugeVec::new(desired, &by_service)?,
    }))
}

/// Tasks by service name and state: observed, then desired.
type TaskCounts = BTreeMap<(String, &'static str), i64>;

fn count_tasks(snapshot: &ClusterSnapshot) -> (TaskCounts, TaskCounts) {
    let (mut observed, mut desired) = (TaskCounts::new(), TaskCounts::new());
    for service in snapshot.services.values() {
        let name = &service.spec.name;
        // A service without tasks has a series, too.
        observed.insert((name.clone(), TaskState::Running.as_str()), 0);
        desired.insert((name.clone(), TaskState::Running.as_str()), 0);
        for task in snapshot.tasks_of(&service.id) {
            *observed.entry((name.clone(), snapshot.state_of(task).as_str())).or_default() += 1;
            *desired.entry((name.clone(), task.desired_state.as_str())).or_default() += 1;
        }
    }
    (observed, desired)
}

impl ClusterCollector {
    fn count(&self, snapshot: &ClusterSnapshot) {
        for state in [NodeState::Ready, NodeState::Silent, NodeState::Down] {
            let count = snapshot.nodes.keys().filter(|id| snapshot.node_state(id) == state).count();
            self.nodes.with_label_values(&[state.as_str()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let (observed, desired) = count_tasks(snapshot);
        for (gauges, counts) in [(&self.tasks, observed), (&self.tasks_desired, desired)] {
            for ((service, state), count) in counts {
                gauges.with_label_values(&[service.as_str(), state]).set(count);
            }
        }
    }
}

impl Collector for ClusterCollector {
    fn desc(&self) -> Vec<&Desc> {
        [self.leader.desc(), self.nodes.desc(), self.tasks.desc(), self.tasks_desired.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let leads = self.leadership.borrow().is_some();
        self.leader.set(i64::from(leads));
        for gauges in [&self.nodes, &self.tasks, &self.tasks_desired] {
            gauges.reset();
        }
        if leads {
            self.count(&self.feed.snapshot());
        }
        let all =
            [self.leader.collect(), self.nodes.collect(), self.tasks.collect(), self.tasks_desired.collect()];
        all.concat().into_iter().filter(|family| !family.get_metric().is_empty()).collect()
    }
}
