//! A member node: its operator's settings, its own description, and whether it is heard.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::NodeId;
use crate::spec::{Extra, GenericResource, Labels, Protocol};

/// A node. Its operator writes the spec, the manager that admitted it the rest, under a compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id, also its certificate's common name.
    pub id: NodeId,
    /// The operator's settings.
    pub spec: NodeSpec,
    /// Its description, from when it last connected.
    pub description: NodeDescription,
    /// The address of its tunnel and its proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The subnet of its tasks, from the cluster's pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Net>,
    /// When it joined.
    pub created_at: Timestamp,
    /// When its spec or description was last written.
    pub updated_at: Timestamp,
    /// The revision of this record before its spec was last written: a client that read it at a
    /// newer one has the present spec. `None` in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_written_after: Option<i64>,
}

/// Whether other nodes can reach a node at this address: unicast, and valid beyond its own link.
pub fn is_member_address(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    let is_of_a_group = first >= 224;
    first != 0 && !is_of_a_group && !address.is_loopback() && !address.is_link_local()
}

/// The operator's settings of a node, in Docker's spelling.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeSpec {
    /// A name; usually empty, as the hostname is shown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Labels for constraints and preferences.
    pub labels: Labels,
    /// Worker or manager.
    pub role: NodeRole,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The default UDP port of the tunnel between nodes.
pub const TUNNEL_PORT: u16 = 4799;

/// Whether a node runs a manager.
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
    /// It takes tasks.
    #[default]
    Active,
    /// It keeps its tasks and gets no new ones.
    Pause,
    /// Its tasks move elsewhere.
    Drain,
}

/// A node's description of itself, sent when it connects.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDescription {
    /// The hostname of the node's machine.
    pub hostname: String,
    /// The architecture: `x86_64`.
    pub architecture: String,
    /// The operating system: `linux`.
    pub os: String,
    /// CPUs, in billionths of one.
    pub nano_cpus: i64,
    /// Memory of the machine, in bytes.
    pub memory_bytes: i64,
    /// Resources that its operator defined in its engine.
    pub generic_resources: Vec<GenericResource>,
    /// The local engine's version.
    pub engine_version: String,
    /// Labels that the engine was configured with.
    pub engine_labels: Labels,
    /// Engine plugins as (type, name).
    pub plugins: Vec<(String, String)>,
    /// mesh-agent's version.
    pub agent_version: String,
    /// Kernel release.
    pub kernel: String,
    /// The data path in use: `xdp`, `tc` or `userspace`.
    pub datapath: String,
    /// Whether its agent supports member keys: it puts cookies on the tunnel packets that it sends,
    /// and accepts packets with one.
    pub takes_cookies: bool,
    /// Whether its agent puts tasks on the networks that their assignments name.
    pub takes_networks: bool,
    /// Whether its agent knows encrypted networks, and so never carries one in clear.
    pub knows_encryption: bool,
    /// Where it takes packets of encrypted networks; absent if it can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionEnd>,
    /// The digest of the CA that signed its certificate. Its manager reads it off the connection.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub certificate_issuer: String,
    /// The digests of the CAs that it trusts; none from agents that don't say it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusts: Vec<String>,
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
    /// The UDP port of the tunnel that the node's agent is set to; `None` if it has no tunnel, or
    /// its agent doesn't report it.
    pub fn tunnel_port(&self) -> Option<u16> {
        let is_tunnel = |own: &&OwnPort| own.protocol == Protocol::Udp && own.purpose == OwnPort::TUNNEL;
        let own = self.own_ports.iter().find(is_tunnel)?;
        (self.datapath != "userspace").then_some(own.port)
    }
}

/// A node's end of the encrypted tunnels between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionEnd {
    /// Its public key, in Base64 as WireGuard's tools write it.
    pub public_key: String,
    /// Its UDP port at the node's address.
    pub port: u16,
}

/// The default UDP port of encrypted tunnels.
pub const ENCRYPTION_PORT: u16 = 4801;

/// A port that a component of mesh itself listens on or connects to. No service may publish it, as
/// the service would get the cluster's own packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OwnPort {
    /// Transport protocol of the port.
    pub protocol: Protocol,
    /// The port that the host needs for itself.
    pub port: u16,
    /// Its purpose, as messages name it: `the tunnel between nodes`.
    pub purpose: String,
}

impl OwnPort {
    /// The purpose of the tunnel's port.
    pub const TUNNEL: &str = "the tunnel between nodes";

    /// The purpose of the port of an agent's metrics.
    pub const AGENT_METRICS: &str = "agents' metrics";

    /// The purpose of the port of a manager's metrics.
    pub const MANAGER_METRICS: &str = "managers' metrics";

    /// The purpose of the port of encrypted tunnels.
    pub const ENCRYPTION: &str = "encrypted tunnels between nodes";

    /// A port with its purpose.
    pub fn new(protocol: Protocol, port: u16, purpose: &str) -> Self {
        Self { protocol, port, purpose: purpose.to_owned() }
    }
}

/// A published port that a node's userspace can't listen on: the node's own connections to it fail,
/// and with `--datapath userspace` all connections through that node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortClash {
    /// Transport protocol of the port.
    pub protocol: Protocol,
    /// The published port that something else holds.
    pub port: u16,
    /// The reason, for the operator.
    pub reason: String,
}

/// Whether a node is heard. Written by the manager that has its session, and by the leader if no
/// manager has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// Whether the node is heard.
    pub state: NodeState,
    /// Since when.
    pub since: Timestamp,
    /// The reason (`heartbeat failure`); empty when it is ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The name of the manager that has, or last had, its session.
    #[serde(default)]
    pub manager: String,
}

/// Whether managers hear a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It is heard.
    Ready,
    /// It was not heard for two seconds: its backends are selected last, its tasks stay.
    Silent,
    /// It missed three heartbeats: its tasks are replaced elsewhere.
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
    fn a_members_address_is_unicast_and_routable() {
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
