//! A task: one attempt at filling a slot of a service. A failed task is replaced, never revived.
//!
//! Invariants: the leader's planners write [`Task`], the node service writes [`TaskStatus`] for the
//! task's node; an observed state only rises ([`TaskStatus::advance`]).

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::{BackendId, NodeId, ServiceId, TaskId};
use crate::network::{AssignedNetwork, Attachment};
use crate::spec::{GenericResource, Protocol, TaskSpec};

/// The states of a task, in the order of its life; used for the desired and the observed state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// A planner created it.
    #[default]
    New,
    /// It waits for a node.
    Pending,
    /// It has a node.
    Assigned,
    /// The node accepted it.
    Accepted,
    /// The image is being pulled, the container created.
    Preparing,
    /// It is prepared, and waits for its turn to start.
    Ready,
    /// The container starts, or is not healthy yet.
    Starting,
    /// It runs, and is healthy if it has a health check.
    Running,
    /// It ended with success.
    Complete,
    /// It was asked to stop, and stopped.
    Shutdown,
    /// It ended with a failure.
    Failed,
    /// It could not be prepared.
    Rejected,
    /// Its slot is gone; a desired state only.
    Remove,
    /// Its node has been away for too long.
    Orphaned,
}

impl TaskState {
    /// Docker's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }

    /// Whether the state is final.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }
}

/// The slot of a task: a number in a replicated service, or a node of a global one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Replicated: 1, 2, …
    Number(u64),
    /// Global: the node.
    Node(NodeId),
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Node(node) => write!(f, "{node}"),
        }
    }
}

/// One ingress-published port of a task: a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEndpoint {
    /// Its id in maps and on the wire.
    pub backend_id: BackendId,
    /// Transport protocol of the port.
    pub protocol: Protocol,
    /// Port that nodes answer on.
    pub published_port: u16,
    /// Port that the task listens on.
    pub target_port: u16,
}

/// A task, as the leader wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The task's id, which no other task ever has.
    pub id: TaskId,
    /// The service it belongs to.
    pub service_id: ServiceId,
    /// The slot that the task fills.
    pub slot: Slot,
    /// The service's spec version that it was made from (`/specs/{service}/{version}`).
    pub spec_version: u64,
    /// The execution of its job that it belongs to; `None` unless its service is a job, whose tasks
    /// run to completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_iteration: Option<u64>,
    /// Its node; `None` until it is scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The resources of its node that it holds while it is alive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
    /// Its desired state: `ready`, `running`, `shutdown` or `remove`.
    pub desired_state: TaskState,
    /// Its backends, one for each ingress-published port.
    #[serde(default)]
    pub endpoints: Vec<TaskEndpoint>,
    /// Its places on the networks of its service, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// When it was created. Orders a slot's history.
    pub created_at: Timestamp,
    /// A replacement waits with desired `ready` until this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_after: Option<Timestamp>,
    /// When the leader last asked it to stop; `None` while it is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_at: Option<Timestamp>,
    /// The state, message and error that the leader gives a task before it has a node (pending, and
    /// why).
    pub leader_status: TaskStatus,
}

impl Task {
    /// Its backend ids: of its published ports, then of its service's virtual IPs.
    pub fn backend_ids(&self) -> impl Iterator<Item = BackendId> + '_ {
        let ports = self.endpoints.iter().map(|endpoint| endpoint.backend_id);
        ports.chain(self.attachments.iter().filter_map(|attachment| attachment.backend_id))
    }

    /// Whether others reach it by the mesh table: through published ports, or on networks.
    pub fn is_in_mesh(&self) -> bool {
        !self.endpoints.is_empty() || !self.attachments.is_empty()
    }
}

/// The observed status of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskStatus {
    /// The highest state so far.
    pub state: TaskState,
    /// When it was reached.
    #[serde(default)]
    pub timestamp: Timestamp,
    /// Swarm's message for the state ("started").
    #[serde(default)]
    pub message: String,
    /// Why it failed or waits; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub err: String,
    /// When it first ran; `None` if it never did. Only [`TaskStatus::advance`] sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_at: Option<Timestamp>,
    /// When the storing manager first stored this state, by that manager's clock; the other stamps
    /// are by the node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<Timestamp>,
    /// The same for its first run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_recorded_at: Option<Timestamp>,
    /// Its container, once made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerStatus>,
}

impl TaskStatus {
    /// The newer of the two: a state never falls, and a terminal one is final. The moment of the
    /// first run stays, and so do the moments that a manager recorded, which only a manager may
    /// set.
    #[must_use]
    pub fn advance(self, newer: Self) -> Self {
        let terminal = self.state.is_terminal();
        if newer.state < self.state || (terminal && newer.state != self.state) {
            return self;
        }
        let first_run = (newer.state == TaskState::Running).then_some(newer.timestamp);
        Self {
            running_at: self.running_at.or(newer.running_at).or(first_run),
            recorded_at: self.recorded_at.filter(|_| newer.state == self.state),
            ran_recorded_at: self.ran_recorded_at,
            ..newer
        }
    }

    /// The status as a manager stores it at `now`, in place of `stored`.
    #[must_use]
    pub fn recorded(self, stored: Option<&Self>, now: Timestamp) -> Self {
        let known = stored.filter(|stored| stored.state == self.state);
        let ran = stored.and_then(|stored| stored.ran_recorded_at);
        Self {
            recorded_at: known.map_or(Some(now), |known| known.recorded_at),
            ran_recorded_at: ran.or(self.running_at.map(|_| now)),
            ..self
        }
    }
}

/// The engine's description of a task's container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The engine's id of the container; empty before it is created.
    pub container_id: String,
    /// Its first process in the node's pid namespace, 0 when it isn't running.
    pub pid: i64,
    /// Its exit code, once it ended.
    pub exit_code: i64,
    /// Its address on the node's mesh network, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
    /// Ports of its node that the engine has bound for it (`mode=host`), while it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// A port of a node that leads to a task's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// Transport protocol of the port.
    pub protocol: Protocol,
    /// Port that the task listens on.
    pub target: u16,
    /// Port of the node.
    pub published: u16,
}

/// Everything that a node needs to run a task, sent in its session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The task that the node is to run.
    pub task: Task,
    /// `web.3`, or `web.<node id>` for a global service; the container is called
    /// `{name}.{task id}`.
    pub name: String,
    /// The service's name, for container labels.
    pub service_name: String,
    /// The service's labels, for container labels and templates.
    pub service_labels: crate::spec::Labels,
    /// The spec of the task.
    pub spec: TaskSpec,
    /// Ports published on the task's own node only (`mode=host`).
    #[serde(default)]
    pub host_ports: Vec<crate::spec::PortConfig>,
    /// The networks that the task is on, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<AssignedNetwork>,
    /// How the task drains before it stops.
    #[serde(default)]
    pub drain: Drain,
    /// The credentials for pulling its image. Never written to disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
}

/// Credentials for a registry, as Docker's clients send them in `X-Registry-Auth`. Never shown,
/// kept in memory only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistryAuth(pub String);

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryAuth")
    }
}

/// The drain of a task that is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Drain {
    /// Whether every node that is heard knows that the task gets no new flows.
    pub announced: bool,
    /// How long live flows have to end, seconds; 0: no time.
    pub limit_s: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observed_state_only_rises() {
        let at = |state| TaskStatus { state, ..TaskStatus::default() };
        assert_eq!(at(TaskState::Running).advance(at(TaskState::Starting)).state, TaskState::Running);
        assert_eq!(at(TaskState::Running).advance(at(TaskState::Failed)).state, TaskState::Failed);
        assert_eq!(at(TaskState::Failed).advance(at(TaskState::Orphaned)).state, TaskState::Failed);
        assert_eq!(at(TaskState::Shutdown).advance(at(TaskState::Failed)).state, TaskState::Shutdown);
    }

    #[test]
    fn the_first_run_is_remembered() {
        let at = |state, seconds| TaskStatus {
            state,
            timestamp: Timestamp::default() + chrono::TimeDelta::seconds(seconds),
            ..TaskStatus::default()
        };
        let ran =
            at(TaskState::Starting, 1).advance(at(TaskState::Running, 2)).advance(at(TaskState::Running, 3));
        let ended = ran.advance(at(TaskState::Failed, 9));
        assert_eq!(
            ended.running_at,
            Some(at(TaskState::Running, 2).timestamp),
            "expected the first run's moment"
        );
        assert_eq!(at(TaskState::Preparing, 1).advance(at(TaskState::Rejected, 2)).running_at, None);
    }
}
