//! What a node is to run, and what changed of it since it was last told.
//!
//! Invariants: pure; a node is told of each of its tasks once for each write of the task; a task that was observed at its end is
//! never shown as one to run, so a node that lost its memory doesn't run it again.
//!
//! Left to others: sending.

use std::collections::BTreeMap;

use mesh_state::ids::{NodeId, TaskId};
use mesh_state::proto;
use mesh_state::spec::{PortConfig, PublishMode, ServiceSpec};
use mesh_state::task::{Assignment, Task, TaskState};

use crate::snapshot::{ClusterSnapshot, Stored};

/// What a node was told: its tasks, each with the revision of the task that it was told of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    tasks: Option<BTreeMap<TaskId, i64>>,
}

/// What to tell `node` now: everything the first time, then what changed; nothing if nothing did.
///
/// # Errors
/// An assignment has no JSON form.
pub fn tell(
    told: &mut Told,
    node: &NodeId,
    snapshot: &ClusterSnapshot,
) -> Result<Option<proto::Assignments>, serde_json::Error> {
    let full = told.tasks.is_none();
    let known = told.tasks.take().unwrap_or_default();
    let mut now = BTreeMap::new();
    let mut set = Vec::new();
    for task in snapshot.tasks_on(node) {
        // A spec that isn't there yet comes with a later snapshot.
        let Some(spec) = snapshot.spec_of(task) else { continue };
        now.insert(task.id.clone(), task.mod_revision);
        if known.get(&task.id) != Some(&task.mod_revision) {
            let assignment_json = serde_json::to_string(&assignment(task, spec, snapshot))?;
            set.push(proto::Assignment { task_id: task.id.to_string(), assignment_json });
        }
    }
    let gone = known.keys().filter(|id| !now.contains_key(id));
    let removed_task_ids: Vec<String> = gone.map(ToString::to_string).collect();
    told.tasks = Some(now);
    let news = full || !set.is_empty() || !removed_task_ids.is_empty();
    Ok(news.then_some(proto::Assignments { full, set, removed_task_ids }))
}

fn assignment(task: &Stored<Task>, spec: &ServiceSpec, snapshot: &ClusterSnapshot) -> Assignment {
    let mut task = task.value.clone();
    if snapshot.state_of(&task).is_terminal() {
        task.desired_state = task.desired_state.max(TaskState::Shutdown);
    }
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    let host_ports: Vec<PortConfig> =
        ports.filter(|port| port.publish_mode == PublishMode::Host).cloned().collect();
    Assignment {
        name: format!("{}.{}", spec.name, task.slot),
        service_name: spec.name.clone(),
        service_labels: spec.labels.clone(),
        spec: spec.task_template.clone(),
        host_ports,
        task,
    }
}
