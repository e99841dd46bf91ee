//! The networks that the host's own addresses and routes reach, without what mesh has added.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rtnetlink::packet_core::NLM_F_DUMP;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::cables::Bridge;
use super::host::TUNNEL_DEVICE;
use super::netlink::Netlink;

/// The kernel's table of ordinary routes.
const MAIN_TABLE: u8 = 254;

/// A network that the host belongs to, or has a route to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostNetwork {
    /// The address's subnet, or the route's destination.
    pub network: Ipv4Net,
    /// The device of the address or route.
    pub device: String,
}

/// Every IPv4 address and route of the host's own, except default routes.
///
/// # Errors
/// The kernel refuses a query.
pub fn host_networks() -> io::Result<Vec<HostNetwork>> {
    let mut netlink = Netlink::open()?;
    let names: BTreeMap<u32, String> =
        netlink.links()?.into_iter().map(|link| (link.index, link.name)).collect();
    let addresses = netlink.addresses()?.into_iter().map(|(index, address)| (index, Ipv4Net::from(address)));
    let routes = routes(&mut netlink)?;
    let networks = addresses.chain(routes).filter_map(|(index, network)| {
        let device = names.get(&index)?;
        let is_mesh = device == TUNNEL_DEVICE || Bridge::named(device).is_some();
        (!is_mesh).then(|| HostNetwork { network, device: device.clone() })
    });
    let mut found: Vec<HostNetwork> = networks.collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Every IPv4 address of the host's own, with its interface's name.
///
/// # Errors
/// The kernel refuses a query.
pub fn host_addresses() -> io::Result<Vec<(String, Ipv4Addr)>> {
    let mut netlink = Netlink::open()?;
    let names: BTreeMap<u32, String> =
        netlink.links()?.into_iter().map(|link| (link.index, link.name)).collect();
    let addresses = netlink.addresses()?.into_iter().filter_map(|(index, address)| {
        let device = names.get(&index)?;
        let is_mesh = device == TUNNEL_DEVICE || Bridge::named(device).is_some();
        (!is_mesh).then(|| (device.clone(), address))
    });
    Ok(addresses.collect())
}

/// Routes of the main table, except default routes, by device.
fn routes(netlink: &mut Netlink) -> io::Result<Vec<(u32, Ipv4Net)>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let answers = netlink.ask(RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => read(&route),
            _ => None,
        })
        .collect())
}

fn read(route: &RouteMessage) -> Option<(u32, Ipv4Net)> {
    let header = &route.header;
    if header.kind != RouteType::Unicast || header.table != MAIN_TABLE {
        return None;
    }
    let (mut device, mut network) = (None, Ipv4Addr::UNSPECIFIED);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => network = *address,
            _ => {}
        }
    }
    let network = Ipv4Net::new(network, header.destination_prefix_length).ok()?;
    (network.prefix_len() > 0).then_some((device?, network))
}
