//! Networks as stored objects: a user's request, what managers gave the network, and the ingress
//! network, to which published ports belong.
//!
//! Invariants: no field of a user's request is lost. The subnets of networks don't overlap, so an
//! address names its network. The holder of an address (a task, a service, an attached container;
//! the network itself for nodes) has it in its own record, so an address is free once its holder is
//! gone.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::{BackendId, NetworkId, NodeId};
use crate::spec::{Extra, Labels};

/// A cluster-wide network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// The network's id.
    pub id: NetworkId,
    /// The network's name, unique in the cluster.
    pub name: String,
    /// Whether this is the network of published ports.
    pub ingress: bool,
    /// The subnet of its addresses.
    pub subnet: Ipv4Net,
    /// The IPv6 subnet, of /96 or larger, if the network has IPv6. A holder's IPv6 address follows
    /// from its IPv4 address: see [`Self::address6`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// The number by which tunnel packets name the network: 1 to [`NUMBER_MAX`], unique among the
    /// networks that exist, plus [`ENCRYPTED`] if the network is encrypted; 0 for the ingress
    /// network, whose packets name backends.
    #[serde(default)]
    pub number: u32,
    /// The address of the network's bridge on each member node that has or had one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_addresses: BTreeMap<NodeId, Ipv4Addr>,
    /// When the network was created.
    pub created_at: Timestamp,
    /// The user's request; empty for the ingress network that mesh made itself.
    #[serde(default)]
    pub spec: NetworkSpec,
}

/// The highest number of a network, apart from [`ENCRYPTED`].
pub const NUMBER_MAX: u32 = 65_535;

/// Bit of an encrypted network's number. It is part of the number wherever that goes, down to the
/// packets: a manager or an agent that doesn't know the bit finds no such number, and so can't take
/// the network for one that may be carried in clear.
pub const ENCRYPTED: u32 = 1 << 19;

/// Whether `number` is one of a user's network, encrypted or not.
pub fn is_number(number: u32) -> bool {
    (1..=NUMBER_MAX).contains(&(number & !ENCRYPTED))
}

/// The option of a network that sets its MTU.
pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// The option of a network that has its packets encrypted between nodes, whatever its value.
pub const ENCRYPTED_OPTION: &str = "encrypted";

impl Network {
    /// The address that `docker network inspect` shows as the network's gateway, and that no holder
    /// gets: the user's, else the first of the subnet. Absent for a network without a subnet of its
    /// own, such as the ingress network.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        if self.number == 0 {
            return None;
        }
        let asked = self.asked().and_then(|config| config.gateway.parse().ok());
        asked.or_else(|| self.subnet.hosts().next())
    }

    /// The range out of which addresses are given: the user's `--ip-range`, else the whole subnet.
    pub fn range(&self) -> Ipv4Net {
        let asked = self.asked().and_then(|config| config.ip_range.parse::<Ipv4Net>().ok());
        asked.map_or(self.subnet, |range| range.trunc())
    }

    /// Whether the network's packets are encrypted between nodes.
    pub fn is_encrypted(&self) -> bool {
        self.number & ENCRYPTED != 0
    }

    /// The MTU that the user set, in bytes.
    pub fn mtu(&self) -> Option<u32> {
        let asked = self.spec.options.as_ref()?.get(MTU_OPTION)?.parse().ok();
        asked.filter(|mtu| *mtu > 0)
    }

    /// The address that `docker network inspect` shows as the IPv6 gateway, and that no holder
    /// gets: the user's, else the first of the subnet.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        let subnet = self.subnet6?;
        let asked = self.configs().find(|config| config.subnet.parse::<Ipv6Net>().is_ok());
        let asked = asked.and_then(|config| config.gateway.parse().ok());
        asked.or_else(|| subnet.hosts().nth(1))
    }

    /// The IPv6 address of whoever has this IPv4 address on the network.
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet| address6(subnet, address))
    }

    /// The IPv6 address of a holder in the spelling of Docker's API: with the subnet's prefix
    /// length.
    pub fn with_prefix6(&self, address: Ipv4Addr) -> Option<String> {
        self.subnet6.map(|subnet| format!("{}/{}", address6(subnet, address), subnet.prefix_len()))
    }

    /// An address in the spelling of Docker's API: with the subnet's prefix length.
    pub fn with_prefix(&self, address: Ipv4Addr) -> String {
        format!("{address}/{}", self.subnet.prefix_len())
    }

    /// What the user asked of the IPv4 addresses.
    pub fn asked(&self) -> Option<&IpamConfig> {
        self.configs().find(|config| config.subnet.parse::<Ipv4Net>().is_ok())
    }

    fn configs(&self) -> impl Iterator<Item = &IpamConfig> {
        self.spec.ipam.iter().flat_map(|ipam| ipam.config.iter().flatten())
    }
}

/// The longest prefix of a network's IPv6 subnet: behind it, an IPv4 address fits.
pub const PREFIX6_MAX: u8 = 96;

/// The IPv6 address of whoever has this IPv4 address on a network with the IPv6 subnet `subnet`:
/// the IPv4 address is its last four octets. So it has one holder, and is free, exactly when the
/// IPv4 address does and is.
pub fn address6(subnet: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.network()) | u128::from(u32::from(address)))
}

/// The subnet and the number given last. Each creation of a network compares and rewrites this
/// record, so two managers can't give two networks the same; the next network gets what follows, so
/// those of a removed network rest as long as possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkCursor {
    /// The subnet given last out of the cluster's pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Net>,
    /// The number given last.
    #[serde(default)]
    pub number: u32,
}

/// A service's virtual IP on a network: connections to any port of it go to the same port of a
/// task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    /// The network's id.
    pub network_id: NetworkId,
    /// The address, out of the network's subnet.
    pub address: Ipv4Addr,
}

/// A task's attachment to a network of its service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's id.
    pub network_id: NetworkId,
    /// The task's address there; absent until the task has a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The task's id as a backend of its service's virtual IP there; absent in mode `dnsrr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_id: Option<BackendId>,
}

/// The data that a node needs to connect a container to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedNetwork {
    /// The network's id.
    pub id: NetworkId,
    /// The network's name, and that of its Docker network on the node.
    pub name: String,
    /// The network's number in tunnel packets, and in the name of its bridge device, with
    /// [`ENCRYPTED`] if it is encrypted.
    pub number: u32,
    /// The network's subnet.
    pub subnet: Ipv4Net,
    /// The network's IPv6 subnet, if it has IPv6: see [`Network::subnet6`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// The address of the network's bridge on this node.
    pub node_address: Ipv4Addr,
    /// Whether the network gives no way out ([`NetworkSpec::internal`]).
    #[serde(default)]
    pub internal: bool,
    /// The MTU that the user set, in bytes; absent: the uplink's, less the tunnel's overhead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's address on the network.
    pub address: Ipv4Addr,
    /// The service's aliases on the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

impl AssignedNetwork {
    /// The container's IPv6 address on the network, if the network has IPv6.
    pub fn address6(&self) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet| address6(subnet, self.address))
    }

    /// The IPv6 address of the network's bridge on this node, if the network has IPv6.
    pub fn node_address6(&self) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet| address6(subnet, self.node_address))
    }
}

/// A user's request for a network, in Docker's spelling (the body of `POST /networks/create`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSpec {
    /// The network's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The driver: `overlay`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Labels that the user gave the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Options of the network driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, String>>,
    /// Whether the user requests IPv6.
    #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
    pub enable_ipv6: Option<bool>,
    /// Whether the network gives no way out to other networks.
    pub internal: bool,
    /// Whether containers that are no tasks may join.
    pub attachable: bool,
    /// Whether the network is to be the one of published ports.
    pub ingress: bool,
    /// Whether it only holds settings for other networks.
    pub config_only: bool,
    /// The requested subnets.
    #[serde(rename = "IPAM", skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

impl NetworkSpec {
    /// Whether the user asks for packets to be encrypted between nodes. As with Docker's driver,
    /// the option's name alone does, so `--opt encrypted=false` does too.
    pub fn asks_for_encryption(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.contains_key(ENCRYPTED_OPTION))
    }

    /// The number of a network with this spec that was given `number` out of 1 to [`NUMBER_MAX`].
    pub fn numbered(&self, number: u32) -> u32 {
        if self.asks_for_encryption() { number | ENCRYPTED } else { number }
    }
}

/// The requested address management of a network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// The driver of address management: `default`.
    pub driver: String,
    /// Options of that driver.
    pub options: Option<BTreeMap<String, String>>,
    /// The requested subnets.
    pub config: Option<Vec<IpamConfig>>,
}

/// One requested subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamConfig {
    /// The subnet, as CIDR.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subnet: String,
    /// The range out of which addresses are given, as CIDR.
    #[serde(rename = "IPRange", skip_serializing_if = "String::is_empty")]
    pub ip_range: String,
    /// The gateway's address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_ends_with_the_ipv4_address() {
        for (subnet, expected) in [
            ("fd00:55::/64", "fd00:55::a00:507"),
            ("fd00:55:0:0:1:2::/96", "fd00:55::1:2:a00:507"),
            ("2001:db8:7::/48", "2001:db8:7::a00:507"),
        ] {
            let given = address6(subnet.parse().expect("a subnet"), Ipv4Addr::new(10, 0, 5, 7));
            assert_eq!(given.to_string(), expected, "in {subnet}");
        }
    }
}
