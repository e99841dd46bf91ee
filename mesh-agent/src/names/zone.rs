//! The zone: all names that this node's tasks can resolve, with their answers.
//!
//! Purpose: [`Zone::of`] indexes a view once; [`Zone::resolve`] answers a question by one look-up
//! in each network of the asker. Both are pure.
//!
//! Invariants: a zone is never changed, only replaced. Names of a network are answered only to
//! members of that network. A service's name takes precedence over the same name of a container, so
//! a container's name, alias or hostname can't take over a service.
//!
//! Left to others: identifying the asker ([`super::server`]), the wire format ([`super::wire`]),
//! and foreign names ([`super::forward`]).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_state::ids::{NetworkId, ServiceId};

use super::index::{Entry, NetworkNames, short_id};
use crate::task::bridge::subnet6_of;
use crate::view::{BackendState, MemberView, NodeView};

/// The suffix of reverse names of IPv4 addresses.
const REVERSE: &str = ".in-addr.arpa";
/// The suffix of reverse names of IPv6 addresses.
const REVERSE6: &str = ".ip6.arpa";

/// The kinds of questions that differ in their answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A, or ANY.
    Address,
    /// AAAA: the IPv6 addresses of a name.
    Address6,
    /// PTR: the name of an address.
    Pointer,
    /// SRV: the port and the hosts of a service.
    Service,
    /// NS, SOA, DS or DNSKEY, which are about a zone of the DNS and not about a host.
    Delegation,
    /// Any other type.
    Other,
}

/// The result of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// The name has these addresses.
    Addresses {
        /// At least one.
        addresses: Vec<Ipv4Addr>,
        /// TTL of the addresses in seconds.
        ttl: u32,
    },
    /// The name has these IPv6 addresses.
    Addresses6 {
        /// At least one.
        addresses: Vec<Ipv6Addr>,
        /// TTL of the addresses in seconds.
        ttl: u32,
    },
    /// The address has this name.
    Pointer {
        /// The name, without the dot at its end.
        name: String,
    },
    /// The service listens on this port of the hosts whose name follows the first two labels of the
    /// question.
    Port {
        /// The port that the question named.
        port: u16,
        /// The hosts' addresses; at least one.
        addresses: Vec<Ipv4Addr>,
        /// TTL of the records in seconds.
        ttl: u32,
    },
    /// The name exists and has no records of this kind.
    NoData,
    /// The name does not exist, and could only be the cluster's.
    NoName,
    /// The name is not the cluster's.
    Foreign,
}

/// The names of the networks on which this node has members or an address.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    networks: HashMap<NetworkId, NetworkNames>,
    /// The network of each address, and the name of a reverse look-up.
    names: HashMap<IpAddr, (NetworkId, String)>,
    /// The networks of this node's members, by each of their addresses.
    scopes: HashMap<Ipv4Addr, Vec<NetworkId>>,
    /// Subnets of networks and of tasks. Reverse names of their addresses are never forwarded.
    subnets: Vec<IpNet>,
}

impl Zone {
    /// Indexes `view`. A service's name resolves to its virtual IP, or to its tasks if it has none
    /// (mode `dnsrr`).
    pub fn of(view: &NodeView) -> Self {
        let here = networks_here(view);
        let mut zone = Self { subnets: subnets(view), ..Self::default() };
        for id in &here {
            if let Some(network) = view.networks.get(*id) {
                zone.networks.insert((*id).clone(), NetworkNames::new(&network.name, network.subnet6));
            }
        }
        let tasks = tasks_by_service(view, &here);
        for service in view.services.values() {
            for place in &service.networks {
                let Some(network) = zone.networks.get_mut(&place.network_id) else { continue };
                let of_service = tasks.get(&(&service.id, &place.network_id)).map_or(&[][..], Vec::as_slice);
                for name in place.aliases.iter().chain([&service.name]) {
                    network.add_service(name, place.virtual_ip, of_service);
                }
                if let Some(address) = place.virtual_ip {
                    let name = format!("{}.{}", service.name, network.name());
                    zone.names.insert(address.into(), (place.network_id.clone(), name));
                }
            }
        }
        let attached = networks_of_containers(view);
        for member in view.members.values() {
            zone.add_member(view, member, &attached);
        }
        zone.networks.values_mut().for_each(NetworkNames::settle);
        zone
    }

    fn add_member(&mut self, view: &NodeView, member: &MemberView, attached: &HashMap<&str, Vec<NetworkId>>) {
        // An attached container has no health check: it serves as long as it exists.
        let state = member.state.or(member.service_id.is_none().then_some(BackendState::Active));
        for place in &member.attachments {
            if member.node_id == view.node_id {
                let container =
                    attached.get(member.container_id.as_str()).filter(|_| member.service_id.is_none());
                let own = || member.attachments.iter().map(|place| place.network_id.clone()).collect();
                let scope = container.cloned().unwrap_or_else(own);
                self.scopes.insert(place.address, scope);
            }
            let Some(network) = self.networks.get_mut(&place.network_id) else { continue };
            let name = format!("{}.{}", member.name, network.name());
            for address in [Some(place.address.into()), network.address6(place.address).map(IpAddr::V6)] {
                let Some(address) = address else { continue };
                self.names.insert(address, (place.network_id.clone(), name.clone()));
            }
            let Some(state) = state else { continue };
            let id = short_id(&member.container_id);
            let hostname = if member.hostname.is_empty() { id } else { &member.hostname };
            let own = [member.name.as_str(), id, hostname];
            let names: HashSet<&str> =
                place.aliases.iter().map(String::as_str).chain(own).filter(|name| !name.is_empty()).collect();
            for name in names {
                network.add_container(name, state, place.address);
            }
        }
    }

    /// The networks of the member on this node that has this address on one of them.
    pub fn scope_of(&self, address: Ipv4Addr) -> Option<&[NetworkId]> {
        self.scopes.get(&address).map(Vec::as_slice)
    }

    /// Whether the zone has the names of all these networks.
    pub fn has_all(&self, networks: &[NetworkId]) -> bool {
        networks.iter().all(|network| self.networks.contains_key(network))
    }

    /// Resolves `name` (in lower case, without a dot at its end) for an asker on the networks of
    /// `scope`; the first network that has the name answers. If the asker `has_own_servers`,
    /// unknown names of a single label are left to these.
    pub fn resolve(&self, scope: &[NetworkId], has_own_servers: bool, name: &str, kind: Kind) -> Resolution {
        if let Some(address) = reversed(name) {
            return self.resolve_address(scope, address, kind);
        }
        let (port, owner) = match (kind, port_of_service(name)) {
            (Kind::Service, Some((port, owner))) => (Some(port), owner),
            _ => (None, name),
        };
        let Some(found) = self.find(scope, owner) else {
            return self.unknown(scope, has_own_servers, owner, kind);
        };
        let (addresses, ttl) = (found.addresses().to_vec(), found.ttl());
        match (kind, port) {
            (Kind::Address6, _) if !found.addresses6().is_empty() => {
                Resolution::Addresses6 { addresses: found.addresses6().to_vec(), ttl }
            }
            _ if addresses.is_empty() => Resolution::NoData,
            (Kind::Address, _) => Resolution::Addresses { addresses, ttl },
            (Kind::Service, Some(port)) => Resolution::Port { port, addresses, ttl },
            _ => Resolution::NoData,
        }
    }

    /// Looks up the whole name in each network, then `a.b` of `a.b.c` in the network `c`, then `a`
    /// in the network `b.c`.
    fn find(&self, scope: &[NetworkId], name: &str) -> Option<&Entry> {
        let networks = || scope.iter().filter_map(|id| self.networks.get(id));
        networks().find_map(|network| network.get(name)).or_else(|| {
            name.rmatch_indices('.').find_map(|(dot, _)| {
                let (host, suffix) = (&name[..dot], &name[dot + 1..]);
                networks().filter(|network| network.is_named(suffix)).find_map(|network| network.get(host))
            })
        })
    }

    /// Tells names that only the cluster could have from foreign ones. A name of one label is not
    /// forwarded, as resolvers outside would only learn the names of services.
    fn unknown(&self, scope: &[NetworkId], has_own_servers: bool, name: &str, kind: Kind) -> Resolution {
        let is_single = !name.is_empty() && !name.contains('.');
        if is_single && !has_own_servers && kind != Kind::Delegation {
            return Resolution::NoName;
        }
        let networks = scope.iter().filter_map(|id| self.networks.get(id));
        let is_below = |network: &NetworkNames| network.has_private_name() && network.holds(name);
        if networks.into_iter().any(is_below) { Resolution::NoName } else { Resolution::Foreign }
    }

    fn resolve_address(&self, scope: &[NetworkId], address: IpAddr, kind: Kind) -> Resolution {
        match self.names.get(&address) {
            Some((network, name)) if scope.contains(network) => match kind {
                Kind::Pointer => Resolution::Pointer { name: name.clone() },
                _ => Resolution::NoData,
            },
            _ if self.subnets.iter().any(|subnet| subnet.contains(&address)) => Resolution::NoName,
            _ => Resolution::Foreign,
        }
    }
}

/// The networks on which this node has a member or an address.
fn networks_here(view: &NodeView) -> HashSet<&NetworkId> {
    let local = view.members.values().filter(|member| member.node_id == view.node_id);
    let joined = local.flat_map(|member| member.attachments.iter().map(|place| &place.network_id));
    let assigned = view.networks.values().filter(|network| network.node_address.is_some());
    joined.chain(assigned.map(|network| &network.id)).collect()
}

/// The networks of each attached container of this node. It has an attachment for each of them.
fn networks_of_containers(view: &NodeView) -> HashMap<&str, Vec<NetworkId>> {
    let mut networks: HashMap<&str, Vec<NetworkId>> = HashMap::new();
    for member in view.members.values() {
        let is_made = member.service_id.is_none() && !member.container_id.is_empty();
        if is_made && member.node_id == view.node_id {
            let of_container = networks.entry(member.container_id.as_str()).or_default();
            of_container.extend(member.attachments.iter().map(|place| place.network_id.clone()));
        }
    }
    networks
}

/// The subnets of the users' networks and of the nodes' tasks.
fn subnets(view: &NodeView) -> Vec<IpNet> {
    let both = |subnet: Ipv4Net, subnet6: Option<Ipv6Net>| {
        std::iter::once(IpNet::V4(subnet)).chain(subnet6.map(IpNet::V6))
    };
    let of_nodes = view.nodes.values().filter_map(|node| node.subnet).chain(view.subnet);
    let of_nodes = of_nodes.flat_map(|subnet| both(subnet, subnet6_of(subnet)));
    view.networks.values().flat_map(|network| both(network.subnet, network.subnet6)).chain(of_nodes).collect()
}

type TasksByService<'a> = HashMap<(&'a ServiceId, &'a NetworkId), Vec<(BackendState, Ipv4Addr)>>;

/// The tasks that serve, by service and network.
fn tasks_by_service<'a>(view: &'a NodeView, here: &HashSet<&NetworkId>) -> TasksByService<'a> {
    let mut tasks = TasksByService::new();
    for member in view.members.values() {
        let (Some(service), Some(state)) = (&member.service_id, member.state) else { continue };
        for place in member.attachments.iter().filter(|place| here.contains(&place.network_id)) {
            tasks.entry((service, &place.network_id)).or_default().push((state, place.address));
        }
    }
    tasks
}

/// The address in a reverse name.
fn reversed(name: &str) -> Option<IpAddr> {
    reversed4(name).map(IpAddr::V4).or_else(|| reversed6(name).map(IpAddr::V6))
}

/// The address in a reverse name of 32 hexadecimal digits.
fn reversed6(name: &str) -> Option<Ipv6Addr> {
    let mut parts = name.strip_suffix(REVERSE6)?.split('.');
    let mut address = 0_u128;
    for position in 0..32 {
        let &[digit] = parts.next()?.as_bytes() else { return None };
        address |= u128::from(char::from(digit).to_digit(16)?) << (4 * position);
    }
    parts.next().is_none().then(|| Ipv6Addr::from(address))
}

fn reversed4(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(REVERSE)?;
    let mut octets = [0; 4];
    let mut parts = digits.split('.');
    for octet in octets.iter_mut().rev() {
        *octet = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// The port and the rest of `_PORT._tcp.NAME`.
fn port_of_service(name: &str) -> Option<(u16, &str)> {
    let (port, rest) = name.strip_prefix('_')?.split_once('.')?;
    let owner = rest.strip_prefix("_tcp.").or_else(|| rest.strip_prefix("_udp."))?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    Some((port, owner))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests6;
