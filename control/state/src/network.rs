//! Networks as objects: what a user asked for, what control gave it, and the ingress network that
//! published ports belong to.
//!
//! Invariants: no field of a user's request is lost. The subnets of networks don't overlap, so an
//! address names its network. Whoever holds an address of a network says so in its own record (a
//! task, a service, an attached container, or here for nodes): an address is free once its holder
//! is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::{BackendId, NetworkId, NodeId};
use crate::spec::{Extra, Labels};

/// A cluster-wide network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique.
    pub name: String,
    /// Whether this is the network of published ports.
    pub ingress: bool,
    /// Where its addresses come from.
    pub subnet: Ipv4Net,
    /// The number by which the tunnel's packets name it: 1 to [`NUMBER_MAX`], never given to two
    /// networks at a time; 0 for the ingress network, whose packets name backends.
    #[serde(default)]
    pub number: u32,
    /// The address of its bridge on each node that has or had one, while the node is a member.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_addresses: BTreeMap<NodeId, Ipv4Addr>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What its user asked for; mesh's own was asked for by nobody.
    #[serde(default)]
    pub spec: NetworkSpec,
}

/// The highest number of a network.
pub const NUMBER_MAX: u32 = 65_535;

/// The option of a network that sets its MTU.
pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";

impl Network {
    /// The address that stands as the network's gateway in `docker network inspect`, and that
    /// nobody is given: the user's, else the first of the subnet. Absent for a network without a
    /// subnet of its own, as the ingress network.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        if self.number == 0 {
            return None;
        }
        let asked = self.asked().and_then(|config| config.gateway.parse().ok());
        asked.or_else(|| self.subnet.hosts().next())
    }

    /// The part of the subnet that addresses are given out of: the user's `--ip-range`, else all of
    /// it.
    pub fn range(&self) -> Ipv4Net {
        let asked = self.asked().and_then(|config| config.ip_range.parse::<Ipv4Net>().ok());
        asked.map_or(self.subnet, |range| range.trunc())
    }

    /// The user's MTU in bytes.
    pub fn mtu(&self) -> Option<u32> {
        let asked = self.spec.options.as_ref()?.get(MTU_OPTION)?.parse().ok();
        asked.filter(|mtu| *mtu > 0)
    }

    /// An address as Docker's API spells it: with the subnet's prefix length.
    pub fn with_prefix(&self, address: Ipv4Addr) -> String {
        format!("{address}/{}", self.subnet.prefix_len())
    }

    fn asked(&self) -> Option<&IpamConfig> {
        self.spec.ipam.as_ref()?.config.as_ref()?.iter().find(|config| !config.subnet.is_empty())
    }
}

/// What networks were given last. Each creation of a network compares this record and writes it, so
/// that two managers give no two networks the same; the next one gets what follows, so that what a
/// removed network had rests for as long as possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkCursor {
    /// The subnet given last out of the cluster's pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Net>,
    /// The number given last.
    #[serde(default)]
    pub number: u32,
}

/// A service's virtual IP on a network: every port and protocol of it leads to the same port of a
/// task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    /// The network.
    pub network_id: NetworkId,
    /// The address, out of the network's subnet.
    pub address: Ipv4Addr,
}

/// A task's place on a network of its service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub network_id: NetworkId,
    /// The task's address there; absent until the task has a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The task as a backend of its service's virtual IP there; absent in mode `dnsrr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_id: Option<BackendId>,
}

/// What a node needs to put a task on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedNetwork {
    /// The network.
    pub id: NetworkId,
    /// Its name, which is that of the Docker network on the node as well.
    pub name: String,
    /// Its number on the wire, which names the bridge device too.
    pub number: u32,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The node's own address on it, the bridge's.
    pub node_address: Ipv4Addr,
    /// Whether its user asked for no way out ([`NetworkSpec::internal`]).
    #[serde(default)]
    pub internal: bool,
    /// Its user's MTU in bytes; absent: the uplink's, less what the tunnel adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The task's address on it.
    pub address: Ipv4Addr,
    /// Further names of the service on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

/// What a user asks of a network, in Docker's spelling (the body of `POST /networks/create`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSpec {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `overlay`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Options of the driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, String>>,
    /// Whether IPv6 was asked for.
    #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
    pub enable_ipv6: Option<bool>,
    /// Whether nothing outside is to be reached from it.
    pub internal: bool,
    /// Whether containers that are no tasks may join.
    pub attachable: bool,
    /// Whether it is to be the network of published ports.
    pub ingress: bool,
    /// Whether it only holds settings for other networks.
    pub config_only: bool,
    /// Addresses asked for.
    #[serde(rename = "IPAM", skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// Whatever else the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Addresses of a network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// `default`.
    pub driver: String,
    /// Options of the driver.
    pub options: Option<BTreeMap<String, String>>,
    /// Subnets.
    pub config: Option<Vec<IpamConfig>>,
}

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamConfig {
    /// Its addresses, CIDR.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subnet: String,
    /// Those that are given away, CIDR.
    #[serde(rename = "IPRange", skip_serializing_if = "String::is_empty")]
    pub ip_range: String,
    /// The way out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Whatever else the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}
