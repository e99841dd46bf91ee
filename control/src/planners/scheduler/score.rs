//! Ranks the nodes that pass the filters.

use super::usage::NodeUsage;
use mesh_state::ids::ServiceId;

/// The number of recent failures from which a node ranks last.
const FAILURES_MAX: u32 = 5;

/// A node's rank for one service's next task: the lowest is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Recent failures if there are at least [`FAILURES_MAX`], else 0.
    failures: u32,
    /// Tasks of the service on the node.
    service_tasks: u32,
    /// Tasks of all services on the node.
    tasks: u32,
}

impl Score {
    /// The score of a node with this usage.
    pub fn new(usage: &NodeUsage<'_>, service: &ServiceId, spec_version: u64) -> Self {
        let failures = usage.failures_of(service, spec_version);
        Self {
            failures: if failures >= FAILURES_MAX { failures } else { 0 },
            service_tasks: usage.tasks_of(service),
            tasks: usage.tasks,
        }
    }
}
