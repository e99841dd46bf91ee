//! Stops tasks whose node no longer meets their constraints, after a label or a role was changed.
//!
//! Invariant: a task is judged by the spec that it was made from: a changed spec is the updater's.
//!
//! Left to others: filling the slot again (orchestrators).

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::ServiceId;
use mesh_state::task::TaskState;
use rand::RngCore;

use crate::orchestrator::create::stopped;
use crate::orchestrator::slots;
use crate::plan::{Action, Plan};
use crate::scheduler::suits::Suits;
use crate::snapshot::ClusterSnapshot;

/// What `docker service ps` shows of such a task.
pub const ERROR: &str = "assigned node no longer meets constraints";

/// Stops what no longer may be where it is.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut read: BTreeMap<(&ServiceId, u64), Option<Suits>> = BTreeMap::new();
    for task in snapshot.tasks.values().filter(|task| slots::is_wanted(task)) {
        let Some(node) = task.node_id.as_ref().and_then(|id| snapshot.nodes.get(id)) else { continue };
        let suits = read
            .entry((&task.service_id, task.spec_version))
            .or_insert_with(|| snapshot.spec_of(task).map(|spec| Suits::new(&spec.task_template)));
        let fits = suits.as_ref().is_none_or(|suits| suits.constraints_hold(node));
        if fits || snapshot.state_of(task).is_terminal() {
            continue;
        }
        plan.reasons
            .push(format!("task {} stops: node {} no longer meets its constraints", task.id, node.id));
        let mut action = stopped(now, task, TaskState::Shutdown);
        if let Action::UpdateTask { task, .. } = &mut action {
            ERROR.clone_into(&mut task.leader_status.err);
        }
        plan.actions.push(action);
    }
    plan
}
