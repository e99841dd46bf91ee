//! The known facts of a task's container: plain data, which the engine's adapter
//! ([`super::docker`]) fills in and [`super::transition`] reads.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_state::network::AssignedNetwork;
use mesh_state::task::HostPort;

/// What the engine reports of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFacts {
    /// The engine's id of the container.
    pub id: String,
    /// How far the container is in its life.
    pub phase: Phase,
    /// Its first process in the node's pid namespace; 0 unless it runs.
    pub pid: i64,
    /// Its exit code, once it has ended.
    pub exit_code: i64,
    /// Why the engine could not start it; empty otherwise.
    pub error: String,
    /// What the container's own check says.
    pub health: Health,
    /// Its address on the network `mesh`, while it runs.
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 address there, if the network has any.
    pub address6: Option<Ipv6Addr>,
    /// Its places on networks, by the network's name.
    pub networks: BTreeMap<String, NetworkPlace>,
    /// Ports of the node that lead to it.
    pub host_ports: Vec<HostPort>,
}

/// A container's place on a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkPlace {
    /// The engine's id of the network, once a start was tried: a network of the same name that was
    /// made since is another one.
    pub network: Option<String>,
    /// The addresses that were asked for, if any were.
    pub wanted: Option<Addresses>,
}

/// The addresses of a container on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address, if the network has IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl From<&AssignedNetwork> for Addresses {
    fn from(network: &AssignedNetwork) -> Self {
        Self { v4: network.address, v6: network.address6() }
    }
}

/// The phases of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Created, never started.
    Created,
    /// Runs (or is paused).
    Running,
    /// Ran and ended.
    Exited,
}

impl ContainerFacts {
    /// The facts of a container that was just created.
    pub const fn made(id: String) -> Self {
        Self {
            id,
            phase: Phase::Created,
            pid: 0,
            exit_code: 0,
            error: String::new(),
            health: Health::Unchecked,
            address: None,
            address6: None,
            networks: BTreeMap::new(),
            host_ports: Vec::new(),
        }
    }

    /// Whether it was not started because another container has an address of its: that can pass.
    pub fn lacks_address(&self) -> bool {
        is_address_taken(&self.error)
    }
}

/// Whether the engine refused a start because an address on a network is another container's. A
/// port that is taken is told in other words (`bind: address already in use`).
pub fn is_address_taken(reason: &str) -> bool {
    reason.trim_end().ends_with("Address already in use")
}

/// The result of a container's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It has no health check.
    Unchecked,
    /// The check has no result yet.
    Starting,
    /// The check passes.
    Healthy,
    /// The check failed too often.
    Unhealthy,
}
