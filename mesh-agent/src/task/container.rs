//! What is known of a task's container: plain data, which the engine's adapter fills in and [`super::transition`] reads.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_state::task::HostPort;

/// What the engine says of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFacts {
    /// Its id.
    pub id: String,
    /// How far it is.
    pub phase: Phase,
    /// Its first process in the node's pid namespace; 0 unless it runs.
    pub pid: i64,
    /// Its exit code, once it ended.
    pub exit_code: i64,
    /// Why the engine could not start it; empty otherwise.
    pub error: String,
    /// Its health.
    pub health: Health,
    /// Its address on the network `mesh`, while it runs.
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 address there, if the network has any.
    pub address6: Option<Ipv6Addr>,
    /// Ports of the node that lead to it.
    pub host_ports: Vec<HostPort>,
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, never started.
    Created,
    /// Runs (or is paused).
    Running,
    /// Ran and ended.
    Exited,
}

impl ContainerFacts {
    /// What there is to know of a container that was just made.
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
            host_ports: Vec::new(),
        }
    }
}

/// What a container's health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It has no health check.
    Unchecked,
    /// Too early to say.
    Starting,
    /// It passes.
    Healthy,
    /// It failed too often.
    Unhealthy,
}
