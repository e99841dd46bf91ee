//! What a node is to run, and what changed of it since it was last told.
//!
//! Invariants: pure; nothing is looked at again before it may have changed; a node is told of each
//! of its tasks once for each write of the task, and once its drain is announced; a task that was
//! observed at its end is never shown as one to run, so a node that lost its memory doesn't run it
//! again; a task that has not begun is told once all is known of its networks, so that it never
//! starts without one.
//!
//! Left to others: sending.

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

/// The option by which users set a network's MTU.
const MTU: &str = "com.docker.network.driver.mtu";

/// What a node was told: its tasks, each with the revision of the task that it was told of, and how
/// it drains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SentAssignments {
    tasks: Option<BTreeMap<TaskId, (i64, Drain)>>,
    basis: Option<Basis>,
}

/// What a look at a node's tasks stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Basis {
    touched_at: i64,
    /// The table that all nodes hold, if a task waits for them to hold a newer one.
    acked_by_all: Option<i64>,
}

impl SentAssignments {
    /// Whether the node's tasks have to be looked at: something that its assignments are made of
    /// has changed since the last look.
    pub fn may_differ(&self, node: &NodeId, snapshot: &ClusterSnapshot) -> bool {
        self.basis.is_none_or(|basis| {
            basis.touched_at != snapshot.touched_at(node)
                || basis.acked_by_all.is_some_and(|acked| acked != snapshot.acked_by_all())
        })
    }
}

/// What to tell `node` now: everything the first time, then what changed; nothing if nothing did.
/// `open` opens sealed credentials.
///
/// # Errors
/// An assignment has no JSON form.
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
        // A spec that isn't there yet comes with a later snapshot.
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

/// An assignment as it is sent: without fields of the spec that Docker has not. They change
/// nothing, and an agent refuses what it doesn't know.
fn written(assignment: &Assignment) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(assignment)?;
    if let Some(spec) = value.get_mut("spec") {
        meaning::keep_known(spec, &shapes::TASK_SPEC);
    }
    serde_json::to_string(&value)
}

/// Whether the node of a task that is to run isn't told of it yet: not all is known of its
/// networks.
pub fn is_withheld(task: &Task, spec: &ServiceSpec, snapshot: &ClusterSnapshot) -> bool {
    is_yet_to_begin(task, snapshot) && networks(task, spec, snapshot).len() < task.attachments.len()
}

/// Whether a task is to run and its node has not taken it yet.
fn is_yet_to_begin(task: &Task, snapshot: &ClusterSnapshot) -> bool {
    task.desired_state <= TaskState::Running && snapshot.state_of(task) < TaskState::Accepted
}

/// Those of a task's networks of which all is known: its own address and its node's.
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
