//! The seam to the mesh: a task is reported running only once the mesh reaches it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use async_trait::async_trait;
use mesh_state::ids::{BackendId, TaskId};
use thiserror::Error;

/// A task whose container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningTask {
    /// The task.
    pub task_id: TaskId,
    /// Its container.
    pub container_id: String,
    /// The container's first process in the node's pid namespace.
    pub pid: u32,
    /// Its address on the network `mesh`.
    pub address: Ipv4Addr,
    /// Its IPv6 address there, if it has one.
    pub address6: Option<Ipv6Addr>,
}

/// A task that is to stop and gets no new flows any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draining {
    /// Its backends.
    pub backends: Vec<BackendId>,
    /// When its drain began.
    pub since: Instant,
}

/// Why the mesh could not take a task.
#[derive(Debug, Error)]
#[error("connect the task to the mesh: {0}")]
pub struct TaskNetworkError(pub String);

/// What connects tasks to the mesh.
#[async_trait]
pub trait TaskNetwork: Send + Sync + 'static {
    /// Connects a task, before it is reported running. Called again after a restart of the agent, and when the container got
    /// another process or address: must be idempotent.
    async fn started(&self, task: &RunningTask) -> Result<(), TaskNetworkError>;

    /// How many flows to a task go on that began before its drain, which begins with the first call of this. Called again and again
    /// while the task is to stop.
    async fn flows_left(&self, task: &Draining) -> Result<u64, TaskNetworkError>;

    /// Lets a task go that no longer runs. Called for unknown tasks too.
    async fn stopped(&self, task_id: &TaskId);
}
