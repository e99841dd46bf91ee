//! The node's uplinks, its addresses on them, and its paths to the other member nodes.
//!
//! Invariants: an address is one the kernel has now; a MAC is one the kernel's neighbour table has
//! now. Neighbours of member nodes are kept resolved by asking the kernel to use them, so no entry
//! is invented here and none is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use mesh_ebpf::abi::{Address, Node};
use tracing::debug;

use super::host::TUNNEL_DEVICE;
use super::netlink::{Link, Netlink, Route};
use crate::datapath::config::DatapathConfig;
use crate::datapath::error::DatapathError;
use crate::datapath::facts::Hop;
use crate::task::bridge::DEVICE as TASKS_DEVICE;

/// The loopback device.
const LOOPBACK: &str = "lo";

/// The node's uplinks and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplinks {
    /// The interfaces over which clients and member nodes are reached.
    pub(crate) links: Vec<Link>,
    /// The address by which other nodes reach this one.
    pub(crate) address: Ipv4Addr,
    /// Every address of the node at which published ports answer; see [`answers`].
    pub(crate) addresses: BTreeSet<Address>,
    /// Index of the uplink by which clients are answered directly (DSR): the one with a default
    /// route, else the one with this node's address.
    pub(crate) direct: u32,
}

impl Uplinks {
    /// Finds the uplinks that `config` names, or else those with a default route; and in any case
    /// the one with the node's address.
    ///
    /// # Errors
    /// There is none, one is missing, or there is no address.
    pub(crate) fn find(netlink: &mut Netlink, config: &DatapathConfig) -> Result<Self, DatapathError> {
        let links = netlink.links().map_err(DatapathError::netlink("listing interfaces"))?;
        let addresses = netlink.addresses().map_err(DatapathError::netlink("listing addresses"))?;
        let defaults =
            netlink.default_route_interfaces().map_err(DatapathError::netlink("listing default routes"))?;
        let is_own = |link: &&Link| link.name == TASKS_DEVICE || link.name == TUNNEL_DEVICE;
        let own_devices: Vec<u32> = links.iter().filter(is_own).map(|link| link.index).collect();
        let mut uplinks: Vec<Link> = if config.interfaces.is_empty() {
            links.iter().filter(|link| defaults.contains(&link.index)).cloned().collect()
        } else {
            named(links.clone(), &config.interfaces)?
        };
        let Some(first) = uplinks.first() else {
            return Err(DatapathError::NoUplink("no interface has a default route".to_owned()));
        };
        let on_first = addresses.iter().find(|(index, _)| *index == first.index).map(|(_, address)| *address);
        let address =
            config.address.or(on_first).ok_or_else(|| DatapathError::NoAddress(first.name.clone()))?;
        let owner = addresses.iter().find(|(_, found)| *found == address).map(|(index, _)| *index);
        // Tunnel packets are accepted from uplinks only and arrive at this address, so its
        // interface must be one, unless that is the loopback device.
        let is_missing =
            |link: &&Link| Some(link.index) == owner && link.name != LOOPBACK && !uplinks.contains(link);
        let missing = links.iter().find(is_missing).cloned();
        uplinks.extend(missing);
        let direct = uplinks
            .iter()
            .find(|link| defaults.contains(&link.index))
            .or_else(|| uplinks.iter().find(|link| Some(link.index) == owner))
            .or(uplinks.first())
            .map_or(0, |link| link.index);
        let addresses6 = netlink.addresses6().map_err(DatapathError::netlink("listing IPv6 addresses"))?;
        let addresses = addresses
            .into_iter()
            .map(|(index, address)| (index, Address::from(address)))
            .chain(addresses6.into_iter().map(|(index, address)| (index, Address::from(address))))
            .filter(|(index, address)| answers(own_devices.contains(index), *address))
            .map(|(_, address)| address)
            .collect();
        Ok(Self { links: uplinks, address, addresses, direct })
    }

    /// The smallest MTU of the uplinks in bytes.
    pub(crate) fn mtu(&self) -> u32 {
        self.links.iter().map(|link| link.mtu).min().unwrap_or_default()
    }

    /// This node as entry 0 of the node table.
    pub(crate) fn own_node(&self) -> Node {
        let first = self.links.first();
        let mac = first.map(|link| link.mac).unwrap_or_default();
        Node {
            address: self.address.into(),
            mac,
            source_mac: mac,
            ifindex: first.map(|link| link.index).unwrap_or_default(),
            ..Node::default()
        }
    }
}

/// Whether published ports answer at an address when its packets arrive at an uplink: whatever
/// device has it (the loopback's, a dummy, another NIC, as virtual and anycast addresses have), but
/// no device that mesh made, and not the loopback's own addresses.
fn answers(is_on_own_device: bool, address: Address) -> bool {
    !is_on_own_device && address.is_host()
}

fn named(links: Vec<Link>, names: &[String]) -> Result<Vec<Link>, DatapathError> {
    let mut links: BTreeMap<String, Link> = links.into_iter().map(|link| (link.name.clone(), link)).collect();
    names
        .iter()
        .map(|name| {
            links.remove(name).ok_or_else(|| DatapathError::NoUplink(format!("there is no interface {name}")))
        })
        .collect()
}

/// Routes to member nodes, cached until routes change.
#[derive(Debug, Default)]
pub(crate) struct MemberRoutes {
    known: BTreeMap<Ipv4Addr, Option<Route>>,
}

impl MemberRoutes {
    /// Drops the cache, when links, addresses or routes have changed.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// The outer Ethernet header for each node, as far as it is known now; makes the kernel resolve
    /// or confirm the rest.
    ///
    /// # Errors
    /// The kernel refuses a query. That a single node can't be reached is no error.
    pub(crate) fn hops(
        &mut self,
        netlink: &mut Netlink,
        uplinks: &Uplinks,
        nodes: &BTreeSet<Ipv4Addr>,
    ) -> Result<BTreeMap<Address, Hop>, DatapathError> {
        self.known.retain(|node, _| nodes.contains(node));
        let neighbours = netlink.neighbours().map_err(DatapathError::netlink("listing neighbours"))?;
        let mut hops = BTreeMap::new();
        for node in nodes {
            let Some(route) = self.route(netlink, *node)? else { continue };
            let Some(uplink) = uplinks.links.iter().find(|link| link.index == route.ifindex) else {
                continue;
            };
            let neighbour = neighbours.get(&(route.ifindex, route.next_hop));
            if !neighbour.is_some_and(|neighbour| neighbour.is_confirmed)
                && let Err(error) = netlink.resolve(route.ifindex, route.next_hop)
            {
                // Most likely the link is down; the next call tries again.
                debug!(neighbour = %route.next_hop, error = mesh_runtime::error_chain(&error), "the kernel can't resolve a neighbour now");
            }
            let mac = neighbour.map(|neighbour| neighbour.mac).unwrap_or_default();
            hops.insert(Address::from(*node), Hop { ifindex: route.ifindex, mac, source_mac: uplink.mac });
        }
        Ok(hops)
    }

    fn route(&mut self, netlink: &mut Netlink, node: Ipv4Addr) -> Result<Option<Route>, DatapathError> {
        if let Some(route) = self.known.get(&node) {
            return Ok(*route);
        }
        let route = match netlink.route_to(node) {
            Ok(route) => route,
            Err(error) if is_unreachable(&error) => None,
            Err(error) => {
                return Err(DatapathError::netlink(format!("looking up the route to {node}"))(error));
            }
        };
        self.known.insert(node, route);
        Ok(route)
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_answer_at_every_address_that_is_the_nodes() {
        let address = |text: &str| Address::from(text.parse::<std::net::IpAddr>().expect("an address"));
        for (is_on_own_device, text, expected) in [
            (false, "10.77.0.11", true),
            (false, "192.0.2.80", true),
            (false, "2001:db8::80", true),
            (false, "127.0.0.1", false),
            (false, "127.9.9.9", false),
            (false, "::1", false),
            (true, "10.128.1.1", false),
        ] {
            assert_eq!(answers(is_on_own_device, address(text)), expected, "{text}");
        }
    }
}
