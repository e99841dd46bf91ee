//! Connects this node's tasks to published ports, and disconnects them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use mesh_ebpf::abi::Address;
use mesh_state::ids::TaskId;

use super::engine::Datapath;
use super::error::DatapathError;
use super::facts::TaskPort;
use super::lock::lock;
use super::network::netns::find_cable;

/// A task of this node that is to be connected to the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLink {
    /// The task at the other end.
    pub task_id: TaskId,
    /// A process in its network namespace.
    pub pid: u32,
    /// Its address on the `mesh` network.
    pub address: Ipv4Addr,
    /// Its IPv6 address there, if it has one.
    pub address6: Option<Ipv6Addr>,
}

impl Datapath {
    /// Connects a task: attaches its program to the host's end of its veth pair, and points its
    /// backends there. Repeating it is harmless.
    ///
    /// # Errors
    /// The veth can't be found, or takes no program: the task gets no connections through this
    /// node.
    pub fn attach_task(&self, task: &TaskLink) -> Result<(), DatapathError> {
        let cable = find_cable(task.task_id.as_str(), task.pid, task.address)?;
        lock(&self.hooks).attach_task(task.task_id.as_str(), &cable.host_end)?;
        let address = Address::from(task.address);
        lock(&self.tasks).insert(task.task_id.clone(), address);
        let port = TaskPort::Attached {
            ifindex: cable.host_end.index,
            mac: cable.task_mac,
            address6: task.address6.map(Address::from).unwrap_or_default(),
        };
        let mut state = lock(&self.state);
        state.change_facts(|facts| _ = facts.ports.insert(address, port));
        state.reconcile(Instant::now()).map(drop)
    }

    /// Disconnects a task, also one that an earlier agent connected: its connections get a RST at
    /// their next packet.
    ///
    /// # Errors
    /// A map refuses the change.
    pub fn detach_task(&self, task: &TaskId) -> Result<(), DatapathError> {
        self.connections.forget(task);
        lock(&self.hooks).detach_task(task.as_str());
        let plugged = lock(&self.tasks).remove(task);
        let mut state = lock(&self.state);
        let Some(address) = plugged.or_else(|| state.address_of(task)) else { return Ok(()) };
        state.change_facts(|facts| _ = facts.ports.insert(address, TaskPort::Gone));
        let written = state.reconcile(Instant::now());
        self.sweep_if_gone(&mut state);
        written.map(drop)
    }
}
