//! A member node: what its operator wants of it, what it says of itself, and whether it is heard.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::NodeId;
use crate::spec::{Extra, GenericResource, Labels, Protocol};

/// A node. Spec by the operator, the rest by the manager that admitted it, under a compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id, also its certificate's common name.
    pub id: NodeId,
    /// What its operator wants.
    pub spec: NodeSpec,
    /// What it said of itself when it last connected.
    pub description: NodeDescription,
    /// Where it forwards and tunnels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its tasks' network, out of the cluster's pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Net>,
    /// When it joined.
    pub created_at: Timestamp,
    /// When its spec or description was last written.
    pub updated_at: Timestamp,
    /// The revision of this record before its spec was last written: whoever read it at a newer one
    /// knows the present spec. Absent in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_written_after: Option<i64>,
}

/// Whether a node may have this address towards the others: a single machine's, beyond its own
/// link.
pub fn is_member_address(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    let is_of_a_group = first >= 224;
    first != 0 && !is_of_a_group && !address.is_loopback() && !address.is_link_local()
}

/// What an operator wants of a node, in Docker's spelling.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeSpec {
    /// A name; usually empty, the hostname serves.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Labels for constraints and preferences.
    pub labels: Labels,
    /// Worker or manager.
    pub role: NodeRole,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Whatever else the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The UDP port of the tunnel between nodes, unless their agents are told another one.
pub const TUNNEL_PORT: u16 = 4799;

/// A node's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Runs tasks.
    #[default]
    Worker,
    /// Also runs the control plane.
    Manager,
}

impl NodeRole {
    /// Docker's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// It does.
    #[default]
    Active,
    /// It keeps what it has and takes no more.
    Pause,
    /// Its tasks move elsewhere.
    Drain,
}

/// What a node says of itself when it connects.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDescription {
    /// Its hostname.
    pub hostname: String,
    /// `x86_64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Billionths of a CPU.
    pub nano_cpus: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Resources that its operator named to its engine.
    pub generic_resources: Vec<GenericResource>,
    /// The local engine's version.
    pub engine_version: String,
    /// The engine's labels.
    pub engine_labels: Labels,
    /// Engine plugins as (type, name).
    pub plugins: Vec<(String, String)>,
    /// mesh-agent's version.
    pub agent_version: String,
    /// Kernel release.
    pub kernel: String,
    /// The datapath in force: `xdp`, `tc` or `userspace`.
    pub datapath: String,
    /// Whether its agent knows member keys: it puts cookies on the tunnel packets that it sends,
    /// and takes those that bear one.
    pub takes_cookies: bool,
    /// Whether its agent puts tasks on the networks that their assignments name.
    pub takes_networks: bool,
    /// Address and port of the manager on this node, if it runs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager_address: Option<String>,
    /// Why it can take no tasks; empty if it can.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unfit: String,
    /// Ports of the node that its agent needs: no service may publish them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub own_ports: Vec<OwnPort>,
}

impl NodeDescription {
    /// The UDP port of the tunnel as the node's agent is set to it; none if it says nothing, or has
    /// no tunnel.
    pub fn tunnel_port(&self) -> Option<u16> {
        let is_tunnel = |own: &&OwnPort| own.protocol == Protocol::Udp && own.purpose == OwnPort::TUNNEL;
        let own = self.own_ports.iter().find(is_tunnel)?;
        (self.datapath != "userspace").then_some(own.port)
    }
}

/// A port that a part of mesh itself listens on or connects to. No service may publish it, as the
/// service would take the cluster's own packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OwnPort {
    /// Transport.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// What it is for, as messages name it: `the tunnel between nodes`.
    pub purpose: String,
}

impl OwnPort {
    /// The purpose of the tunnel's port.
    pub const TUNNEL: &str = "the tunnel between nodes";

    /// A port, and what it is for.
    pub fn new(protocol: Protocol, port: u16, purpose: &str) -> Self {
        Self { protocol, port, purpose: purpose.to_owned() }
    }
}

/// A published port that a node's userspace can't listen on: the node's own connections to it fail,
/// and in `--datapath userspace` everyone's through that node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortClash {
    /// Transport.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// Why, for people.
    pub reason: String,
}

/// Whether a node is heard. Written by the manager that holds its stream, and by the leader when no
/// manager does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// What the cluster believes.
    pub state: NodeState,
    /// Since when.
    pub since: Timestamp,
    /// Why (`heartbeat failure`); empty when it is ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The manager that holds or last held its stream: its name.
    #[serde(default)]
    pub manager: String,
}

/// What the cluster believes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Heard.
    Ready,
    /// Not heard for a moment: out of the mesh's selection, its tasks stay.
    Silent,
    /// Three heartbeats missed: its tasks are replaced elsewhere.
    Down,
}

impl NodeState {
    /// The name in metrics and in `mesh status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Silent => "silent",
            Self::Down => "down",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_address_is_a_machines() {
        for good in ["10.77.0.11", "192.168.1.1", "203.0.113.5", "100.64.0.1"] {
            assert!(is_member_address(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_member_address(bad.parse().unwrap()), "{bad}");
        }
    }
}
