//! The interface of the mesh to tasks: a task is reported running only once the mesh reaches it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use async_trait::async_trait;
use mesh_state::ids::{BackendId, NetworkId, TaskId};
use mesh_state::task::Assignment;
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
    /// The task's address on the network `mesh`; absent if all its networks are internal and it
    /// publishes no port, as nothing leads outside then.
    pub address: Option<Ipv4Addr>,
    /// The task's IPv6 address there, if it has one.
    pub address6: Option<Ipv6Addr>,
    /// Its addresses on its service's networks, in the order of the spec.
    pub networks: Vec<NetworkAddress>,
}

/// A task whose container is about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartingTask {
    /// The task's id.
    pub task_id: TaskId,
    /// The addresses that it is about to get on its service's networks.
    pub networks: Vec<NetworkAddress>,
}

/// A task's address on a network of its service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAddress {
    /// The network's id.
    pub network_id: NetworkId,
    /// The network's number on the wire; the bridge device is called `meshn<number>`.
    pub number: u32,
    /// The task's address there.
    pub address: Ipv4Addr,
}

/// The addresses that control gave a task on its networks.
pub fn addresses(assignment: &Assignment) -> Vec<NetworkAddress> {
    let networks = assignment.networks.iter();
    networks
        .map(|network| NetworkAddress {
            network_id: network.id.clone(),
            number: network.number,
            address: network.address,
        })
        .collect()
}

/// A task that is to stop and gets no new flows any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draining {
    /// The task's id.
    pub task_id: TaskId,
    /// Its container's first process in the node's pid namespace.
    pub pid: u32,
    /// The task's backends.
    pub backends: Vec<BackendId>,
    /// Its addresses on its service's networks, at which other tasks connect to it.
    pub networks: Vec<Ipv4Addr>,
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
    /// Announces a task whose container is about to start, so that its networks are guarded before
    /// its process runs. Called before each attempt to start it: must be idempotent.
    async fn starting(&self, task: &StartingTask) -> Result<(), TaskNetworkError>;

    /// Connects a task, before it is reported running. Called again after a restart of the agent,
    /// and when the container got another process or address: must be idempotent.
    async fn started(&self, task: &RunningTask) -> Result<(), TaskNetworkError>;

    /// The number of live flows of a task that began before its drain, and of connections of other
    /// tasks to it. The drain begins with the first call, and the driver calls again and again
    /// while the task is to stop.
    async fn flows_left(&self, task: &Draining) -> Result<u64, TaskNetworkError>;

    /// Disconnects a task that no longer runs. Called for unknown tasks too.
    async fn stopped(&self, task_id: &TaskId);
}
