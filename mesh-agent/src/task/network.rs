//! The interface of the mesh to tasks: a task is reported running only once the mesh reaches it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use async_trait::async_trait;
use mesh_state::ids::{BackendId, TaskId};
use thiserror::Error;

/// A task whose container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningTask {
    /// The task's id.
    pub task_id: TaskId,
    /// The id of its container.
    pub container_id: String,
    /// The container's first process in the node's pid namespace.
    pub pid: u32,
    /// The task's address on the network `mesh`.
    pub address: Ipv4Addr,
    /// The task's IPv6 address there, if it has one.
    pub address6: Option<Ipv6Addr>,
}

/// A task that is to stop and gets no new flows any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draining {
    /// The task's backends.
    pub backends: Vec<BackendId>,
    /// When its drain began.
    pub since: Instant,
}

/// Why the mesh could not connect a task.
#[derive(Debug, Error)]
#[error("connect the task to the mesh: {0}")]
pub struct TaskNetworkError(pub String);

/// Connects tasks to the mesh.
#[async_trait]
pub trait TaskNetwork: Send + Sync + 'static {
    /// Connects a task, before it is reported running. Called again after a restart of the agent,
    /// and when the container got another process or address: must be idempotent.
    async fn started(&self, task: &RunningTask) -> Result<(), TaskNetworkError>;

    /// The number of live flows of a task that began before its drain. The drain begins with the
    /// first call, and the driver calls again and again while the task is to stop.
    async fn flows_left(&self, task: &Draining) -> Result<u64, TaskNetworkError>;

    /// Disconnects a task that no longer runs. Called for unknown tasks too.
    async fn stopped(&self, task_id: &TaskId);
}
