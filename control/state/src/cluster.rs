//! The cluster's record: ids, defaults, its CA and its join tokens.
//!
//! Invariant: its secrets open only with the key file, which is never in etcd.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ca::{CaRotation, ManagerCas};
use crate::ids::{ClusterId, NodeId};
use crate::node::OwnPort;
use crate::spec::Labels;

/// Bytes sealed with the cluster's key file (XChaCha20-Poly1305): nonce, then ciphertext and tag,
/// base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(pub String);

/// Swarm's default heartbeat period: 5 s.
pub const fn heartbeat_period_ns() -> u64 {
    5_000_000_000
}

/// Swarm's default validity of a node's certificate: 90 days.
pub const fn node_cert_expiry_ns() -> u64 {
    90 * 24 * 3_600 * 1_000_000_000
}

/// The default pool of tasks' addresses: as many /24 as 4 096 nodes need, apart from what engines
/// give their own networks.
pub const fn task_pool() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 12)
}

/// Swarm's pool of networks' subnets: 10.0.0.0/8.
pub const fn network_pool() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)
}

/// Swarm's prefix length of a network's subnet: 24.
pub const fn network_prefix() -> u8 {
    24
}

/// The cluster's one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The id that nodes and managers know the cluster by.
    pub id: ClusterId,
    /// When the first manager created it.
    pub created_at: Timestamp,
    /// The pool of node subnets.
    pub subnet_pool: Ipv4Net,
    /// Prefix length of a node's subnet.
    pub subnet_prefix: u8,
    /// The subnets of networks whose users ask for none come out of this.
    #[serde(default = "network_pool")]
    pub network_pool: Ipv4Net,
    /// Prefix length of such a subnet.
    #[serde(default = "network_prefix")]
    pub network_prefix: u8,
    /// Ended tasks kept in each slot.
    pub task_history_limit: u64,
    /// Nanoseconds between two heartbeats, as Swarm counts them: a node that misses three of them
    /// is down.
    #[serde(default = "heartbeat_period_ns")]
    pub heartbeat_period_ns: u64,
    /// The validity of a node's certificate, nanoseconds.
    #[serde(default = "node_cert_expiry_ns")]
    pub node_cert_expiry_ns: u64,
    /// The operator's labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When the operator last changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    /// The certificate of the CA that signs for nodes, PEM.
    pub ca_certificate_pem: String,
    /// The CA's private key, PEM, sealed.
    pub ca_key: Sealed,
    /// The secret of the worker's join token, sealed.
    pub worker_token: Sealed,
    /// The secret of the manager's join token, sealed.
    pub manager_token: Sealed,
    /// The key that authenticates relay preambles between members, sealed.
    pub relay_key: Sealed,
    /// The key with which managers wrap their key files, sealed; `None` without autolock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlock_key: Option<Sealed>,
    /// The replacement of the CA, while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_rotation: Option<CaRotation>,
    /// A number that clients raise to have the CA replaced (`docker swarm ca --rotate`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub force_rotate: u64,
    /// What is added to etcd's revisions to get the cluster's: more than 0 in a cluster that was
    /// restored into a new etcd, so that its revisions are newer than any that nodes have seen.
    #[serde(default, skip_serializing_if = "is_unraised")]
    pub revision_base: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_unraised(base: &i64) -> bool {
    *base == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A manager: in `/managers/{name}` while it is alive, and in `/leader` while it leads, bound to
/// its lease in both.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Manager {
    /// Its name, unique among managers. Nodes may have any hostname, this one too.
    pub name: String,
    /// The node that it runs on; `None` until that node's agent has announced it. In
    /// `/managers/{name}` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// When it wrote this record, by its own clock, for others to compare with theirs. It rewrites
    /// the record every half a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<Timestamp>,
    /// Nodes whose clocks are more than a second ahead of its own or behind it, in milliseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes_off: BTreeMap<NodeId, i64>,
    /// The address at which agents and clients reach it.
    pub address: String,
    /// Since when it is alive or, in `/leader`, leads; by its own clock.
    pub since: Timestamp,
    /// Ports that it and its etcd need: no service may publish them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_ports: Vec<OwnPort>,
    /// Whether it sends its nodes the secrets that members share, and their changes.
    #[serde(default)]
    pub tells_member_keys: bool,
    /// The CAs that it trusts and serves with; `None` from managers that can't replace theirs. In
    /// `/managers/{name}` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cas: Option<ManagerCas>,
}

/// A manager's place in the etcd that managers run, whether or not it is alive. It is written when
/// the manager is admitted, and removed once its member is out of etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdPlace {
    /// The manager's name, which is also the member's.
    pub name: String,
    /// The URL at which the other members reach it.
    pub peer_url: String,
    /// The address at which agents reach the manager.
    pub address: String,
}
