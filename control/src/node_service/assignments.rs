//! Computes a node's assignments, and their changes since the last message.
//!
//! Invariants: pure; a task is checked again only after it may have changed; each write of a task
//! is sent to its node once, and so is the start of its drain; a task that was observed to have
//! ended is never sent as one to run, so a node that lost its state doesn't run it again; a task
//! that has not begun is sent once all addresses of its networks are known, so it never starts
//! without a network.
//!
//! Left to others: sending the messages.

use std::collections::BTreeMap;

use mesh_state::cluster::Sealed;
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::network::AssignedNetwork;
use mesh_state::proto;
use mesh_state::spec::{PortConfig, PublishMode, ServiceSpec};
use mesh_state::task::{Assignment, Drain, RegistryAuth, Task, TaskState};

use crate::docker_json::{meaning, shapes};
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::slots::addresses::is_served;
use crate::slots::drain;
use crate::slots::networks::named_by;

/// The network option by which users set the MTU.
const MTU: &str = "com.docker.network.driver.mtu";

/// The assignments that a node was sent: the revision of each task, and how it drains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SentAssignments {
    tasks: Option<BTreeMap<TaskId, (i64, Drain)>>,
    basis: Option<Basis>,
}

/// The state on which a pass over a node's tasks depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Basis {
    touched_at: i64,
    /// The table generation that all nodes have acknowledged, if a task waits for a newer one.
    acked_by_all: Option<i64>,
}

impl SentAssignments {
    /// Whether the node's tasks have to be checked: something that its assignments depend on has
    /// changed since the last pass.
    pub fn may_differ(&self, node: &NodeId, snapshot: &ClusterSnapshot) -> bool {
        self.basis.is_none_or(|basis| {
            basis.touched_at != snapshot.touched_at(node)
                || basis.acked_by_all.is_some_and(|acked| acked != snapshot.acked_by_all())
        })
    }
}

/// The next message to `node`: all assignments the first time, then the changes; `None` if nothing
/// changed. `open` opens sealed credentials.
///
/// # Errors
/// An assignment can't be encoded as JSON.
pub fn tell(
    told: &mut SentAssignments,
    node: &NodeId,
    snapshot: &ClusterSnapshot,
    open: &dyn Fn(&Sealed) -> Option<RegistryAuth>,
) -> Result<Option<proto::Assignments>, serde_json::Error> {
    if !told.may_differ(node, snapshot) {
        return Ok(None);
    }
    let full = told.tasks.is_none();
    let known = told.tasks.take().unwrap_or_default();
    let mut now = BTreeMap::new();
    let mut set = Vec::new();
    for task in snapshot.tasks_on(node) {
        // A spec that is missing comes with a later snapshot.
        let Some(spec) = snapshot.spec_of(task) else { continue };
        let drain = drain::of(snapshot, task);
        if known.get(&task.id) != Some(&(task.mod_revision, drain)) {
            if is_withheld(task, spec, snapshot) {
                continue;
            }
            let mut assignment = assignment(task, spec, snapshot, drain);
            assignment.networks = networks(task, spec, snapshot);
            let service = snapshot.services.get(&task.service_id);
            let sealed = service.and_then(|service| service.registry_auth.as_ref());
            assignment.registry_auth =
                sealed.filter(|_| assignment.task.desired_state <= TaskState::Running).and_then(open);
            let assignment_json = written(&assignment)?;
            set.push(proto::Assignment { task_id: task.id.to_string(), assignment_json });
        }
        now.insert(task.id.clone(), (task.mod_revision, drain));
    }
    let gone = known.keys().filter(|id| !now.contains_key(id));
    let removed_task_ids: Vec<String> = gone.map(ToString::to_string).collect();
    let is_awaited = now.iter().any(|(id, (_, drain))| {
        !drain.announced && snapshot.tasks.get(id).is_some_and(|task| task.desired_state > TaskState::Running)
    });
    let acked_by_all = is_awaited.then(|| snapshot.acked_by_all());
    told.basis = Some(Basis { touched_at: snapshot.touched_at(node), acked_by_all });
    told.tasks = Some(now);
    let news = full || !set.is_empty() || !removed_task_ids.is_empty();
    Ok(news.then_some(proto::Assignments { full, set, removed_task_ids }))
}

/// An assignment as JSON for the wire, without fields of the spec that Docker doesn't have. These
/// have no effect, and an agent refuses fields that it doesn't know.
fn written(assignment: &Assignment) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(assignment)?;
    if let Some(spec) = value.get_mut("spec") {
        meaning::keep_known(spec, &shapes::TASK_SPEC);
    }
    serde_json::to_string(&value)
}

/// Whether a task that is to run is held back from its node because an address of its networks is
/// missing.
pub fn is_withheld(task: &Task, spec: &ServiceSpec, snapshot: &ClusterSnapshot) -> bool {
    is_yet_to_begin(task, snapshot) && networks(task, spec, snapshot).len() < task.attachments.len()
}

/// Whether a task is to run and its node has not accepted it yet.
fn is_yet_to_begin(task: &Task, snapshot: &ClusterSnapshot) -> bool {
    task.desired_state <= TaskState::Running && snapshot.state_of(task) < TaskState::Accepted
}

/// The networks of a task for which both the task's and its node's address are known.
fn networks(task: &Task, spec: &ServiceSpec, snapshot: &ClusterSnapshot) -> Vec<AssignedNetwork> {
    if task.attachments.is_empty() {
        return Vec::new();
    }
    let named = named_by(spec);
    let assigned = task.attachments.iter().filter_map(|attachment| {
        let network = snapshot.networks.get(&attachment.network_id).filter(|network| is_served(network))?;
        let aliases = named.iter().find(|named| named.id == network.id).map(|named| named.aliases.clone());
        Some(AssignedNetwork {
            id: network.id.clone(),
            name: network.name.clone(),
            number: network.number,
            subnet: network.subnet,
            subnet6: network.subnet6,
            node_address: *network.node_addresses.get(task.node_id.as_ref()?)?,
            internal: network.spec.internal,
            mtu: network.spec.options.as_ref().and_then(|options| options.get(MTU)?.parse().ok()),
            address: attachment.address?,
            aliases: aliases.unwrap_or_default(),
        })
    });
    assigned.collect()
}

fn assignment(
    task: &Stored<Task>,
    spec: &ServiceSpec,
    snapshot: &ClusterSnapshot,
    drain: Drain,
) -> Assignment {
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
        drain,
        registry_auth: None,
        networks: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
