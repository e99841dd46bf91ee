//! `Task`.

use std::net::IpAddr;

use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use mesh_state::spec::{GenericResource, Labels, PortConfig, PublishMode, TaskSpec};
use mesh_state::task::{HostPort, Slot, Task as StoredTask, TaskState, TaskStatus};
use serde::Serialize;

use super::{AttachedNetwork, Version, shown};
use crate::api::port_clash;
use crate::api::services::networks::named_by;
use crate::feed::snapshot::{ClusterSnapshot, Versioned};

/// A task as `GET /tasks` shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Task {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: Timestamp,
    updated_at: Timestamp,
    labels: Labels,
    spec: TaskSpec,
    #[serde(rename = "ServiceID")]
    service_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u64>,
    #[serde(rename = "NodeID", skip_serializing_if = "Option::is_none")]
    node_id: Option<String>,
    status: Status,
    desired_state: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    networks_attachments: Vec<NetworkAttachment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_iteration: Option<Version>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    generic_resources: Vec<GenericResource>,
    /// Cluster volumes; mesh has none, but clients of Swarm expect the field.
    volumes: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    timestamp: Timestamp,
    state: &'static str,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    err: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_status: Option<ContainerStatus>,
    port_status: PortStatus,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    container_id: String,
    #[serde(rename = "PID")]
    pid: i64,
    exit_code: i64,
}

/// The ports that a running task publishes on its own node (`mode=host`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PortStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortConfig>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkAttachment {
    network: AttachedNetwork,
    addresses: Vec<String>,
}

impl Task {
    /// The API object of a stored task, with its status.
    pub(crate) fn new(snapshot: &ClusterSnapshot, task: &Versioned<StoredTask>) -> Self {
        let stored = &task.value;
        let status = snapshot.status_of(stored);
        let reported_at = snapshot.statuses.get(&stored.id).map_or(0, |status| status.mod_revision);
        let service = snapshot.services.get(&stored.service_id);
        Self {
            id: stored.id.to_string(),
            version: Version { index: task.mod_revision.max(reported_at) },
            created_at: stored.created_at,
            updated_at: status.timestamp.max(stored.created_at),
            labels: Labels::new(),
            spec: snapshot
                .spec_of(stored)
                .or_else(|| service.map(|service| &service.spec))
                .map(|spec| shown::template(&spec.task_template))
                .unwrap_or_default(),
            service_id: stored.service_id.to_string(),
            slot: match stored.slot {
                Slot::Number(number) => Some(number),
                Slot::Node(_) => None,
            },
            node_id: node_of(stored).map(ToString::to_string),
            status: Status::new(status, error(snapshot, stored), host_ports(snapshot, stored, status)),
            desired_state: desired(stored).as_str(),
            job_iteration: stored
                .job_iteration
                .map(|iteration| Version { index: i64::try_from(iteration).unwrap_or(i64::MAX) }),
            generic_resources: stored.generic_resources.clone(),
            volumes: None,
            networks_attachments: attachments(snapshot, stored, status),
        }
    }
}

/// The node that a task runs on or is to run on; a global service's task has one from the start.
fn node_of(task: &StoredTask) -> Option<&NodeId> {
    match &task.slot {
        Slot::Node(node) => Some(node),
        Slot::Number(_) => task.node_id.as_ref(),
    }
}

/// The desired state in Docker's words; a job's task is to complete.
pub(crate) fn desired(task: &StoredTask) -> TaskState {
    match task.desired_state {
        TaskState::Running if task.job_iteration.is_some() => TaskState::Complete,
        state => state,
    }
}

impl Status {
    fn new(status: &TaskStatus, err: String, ports: Vec<PortConfig>) -> Self {
        Self {
            timestamp: status.timestamp,
            state: status.state.as_str(),
            message: status.message.clone(),
            err,
            container_status: status.container.as_ref().map(|container| ContainerStatus {
                container_id: container.container_id.clone(),
                pid: container.pid,
                exit_code: container.exit_code,
            }),
            port_status: PortStatus { ports },
        }
    }
}

/// The task's own error, else its service's port clashes.
fn error(snapshot: &ClusterSnapshot, task: &StoredTask) -> String {
    match snapshot.error_of(task) {
        "" => port_clash::of_task(snapshot, task).unwrap_or_default(),
        own => own.to_owned(),
    }
}

fn host_ports(snapshot: &ClusterSnapshot, task: &StoredTask, status: &TaskStatus) -> Vec<PortConfig> {
    if status.state != TaskState::Running {
        return Vec::new();
    }
    let endpoint = snapshot.spec_of(task).and_then(|spec| spec.endpoint_spec.as_ref());
    let ports = endpoint.map_or(&[][..], |endpoint| &endpoint.ports);
    let bound = status.container.as_ref().map_or(&[][..], |container| &container.host_ports);
    let published = |port: &PortConfig| {
        let is_it = |own: &&HostPort| (own.protocol, own.target) == (port.protocol, port.target_port);
        // The port that the engine chose is known from the task's status only.
        let chosen = bound.iter().find(is_it).filter(|_| port.published_port == 0);
        PortConfig { published_port: chosen.map_or(port.published_port, |own| own.published), ..port.clone() }
    };
    ports.iter().filter(|port| port.publish_mode == PublishMode::Host).map(published).collect()
}

/// The networks that the task is on, each with the task's addresses there, IPv4 first; first the
/// ingress network if the mesh publishes a port of it, with the address on the task's node: there
/// Docker's clients look for what answers on such a port. A port that is published on the task's
/// node only is reached at the node's address.
fn attachments(snapshot: &ClusterSnapshot, task: &StoredTask, status: &TaskStatus) -> Vec<NetworkAttachment> {
    let on_node = address_on_node(snapshot, task, status);
    let has_ingress = !task.endpoints.is_empty();
    let ingress = snapshot.networks.values().find(|network| network.ingress && has_ingress);
    let ingress = ingress.zip(on_node.clone().map(|address| vec![address]));
    let own = task.attachments.iter().filter_map(|attachment| {
        let network = snapshot.networks.get(&attachment.network_id)?;
        let address = attachment.address?;
        let both = std::iter::once(network.with_prefix(address)).chain(network.with_prefix6(address));
        Some((network, both.collect()))
    });
    // A task that an earlier version made has no address on its networks but that on its node.
    let named = snapshot.spec_of(task).filter(|_| task.attachments.is_empty()).map(named_by);
    let earlier = named.into_iter().flatten().filter_map(|id| {
        let network = snapshot.networks.get(&id.into())?;
        Some((network, vec![on_node.clone()?]))
    });
    let shown = ingress.into_iter().chain(own).chain(earlier);
    shown
        .map(|(network, addresses)| NetworkAttachment { network: AttachedNetwork::new(network), addresses })
        .collect()
}

/// The address of a task's container on the network of its node's tasks.
fn address_on_node(snapshot: &ClusterSnapshot, task: &StoredTask, status: &TaskStatus) -> Option<String> {
    let address = status.container.as_ref()?.address?;
    let subnet = task.node_id.as_ref().and_then(|node| snapshot.nodes.get(node)).and_then(|node| node.subnet);
    let prefix = match (address, subnet) {
        (IpAddr::V4(_), Some(subnet)) => subnet.prefix_len(),
        (IpAddr::V4(_), None) => 32,
        (IpAddr::V6(_), _) => 128,
    };
    Some(format!("{address}/{prefix}"))
}
