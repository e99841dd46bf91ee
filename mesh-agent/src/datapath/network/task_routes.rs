//! Routes to the tasks of other nodes: each member's subnet through the tunnel, under the VNI of
//! packets between tasks.
//!
//! The kernel's own routes do it (`ip route` shows them, `encap ip id … dst NODE dev mesh-vxlan0`):
//! a task's packet leaves by its bridge, is forwarded into the tunnel, and the other node's program
//! passes it to that node's bridge.
//!
//! Invariants: every route on the tunnel device is one of these; it goes with the device, and a
//! member's goes with the member. Packets between tasks are exempt from connection tracking
//! ([`super::firewall`]), so that the engine's NAT doesn't hide their sources.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use mesh_ebpf::parse::vxlan::Vni;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteIpTunnel, RouteLwEnCapType, RouteLwTunnelEncap,
    RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;
use super::upkeep::{self, Upkeep};
use crate::datapath::error::DatapathError;
use crate::task::bridge::subnet6_of;
use crate::view::NodeView;

/// The originator of the routes, as `ip route` shows it: a number that no routing daemon uses.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(109);
/// Time to live of outer packets.
const OUTER_TTL: u8 = 64;

/// Subnets of other nodes' tasks, and the nodes' addresses.
pub(crate) type Subnets = BTreeMap<Ipv4Net, Ipv4Addr>;

/// The routes as they were last put in place.
#[derive(Debug, Default)]
pub(crate) struct TaskRoutes {
    /// The routes as they are, if that is known.
    applied: Option<(u32, Subnets)>,
    /// The routes as they were last put in place, whatever has happened to them since.
    last: Option<(u32, Subnets)>,
}

/// The tunnel of the routes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tunnel {
    /// The tunnel device's index.
    pub(crate) ifindex: u32,
    /// The tunnel's UDP port.
    pub(crate) port: u16,
    /// This node's address.
    pub(crate) local: Ipv4Addr,
}

/// The subnets of the view's other nodes.
pub(crate) fn wanted(view: &NodeView) -> Subnets {
    let others = view.nodes.values().filter(|node| node.id != view.node_id);
    others.filter_map(|node| Some((node.subnet?, node.address))).collect()
}

impl TaskRoutes {
    /// Makes the next call of [`TaskRoutes::follow`] read the kernel's routes, as devices or
    /// addresses have changed.
    pub(crate) fn forget(&mut self) {
        self.applied = None;
    }

    /// Puts the routes in place, if they aren't.
    ///
    /// # Errors
    /// The kernel refuses a query or a route; the next call tries again.
    pub(crate) fn follow(
        &mut self,
        netlink: &mut Netlink,
        tunnel: Tunnel,
        wanted: Subnets,
        upkeep: &mut Upkeep,
    ) -> Result<(), DatapathError> {
        if tunnel.ifindex == 0 || self.applied.as_ref() == Some(&(tunnel.ifindex, wanted.clone())) {
            return Ok(());
        }
        let failed = |what| DatapathError::netlink(format!("{what} routes to tasks of other nodes"));
        let present = netlink.tunnel_routes(tunnel.ifindex).map_err(failed("listing"))?;
        let routes = routes(&wanted);
        for subnet in present.iter().filter(|subnet| !routes.contains_key(subnet)) {
            netlink.delete_tunnel_route(tunnel.ifindex, *subnet).map_err(failed("deleting"))?;
        }
        let was_applied = self.last.as_ref() == Some(&(tunnel.ifindex, wanted.clone()));
        if was_applied && routes.keys().any(|subnet| !present.contains(subnet)) {
            upkeep.settings.note_restored(upkeep::ROUTES);
        }
        for (subnet, node) in &routes {
            netlink.put_tunnel_route(tunnel, *subnet, *node).map_err(failed("adding"))?;
        }
        if self.last.as_ref().is_none_or(|(_, subnets)| *subnets != wanted) {
            upkeep.firewall.exempt(tunnel.port, wanted.keys());
        }
        self.last = Some((tunnel.ifindex, wanted.clone()));
        self.applied = Some((tunnel.ifindex, wanted));
        Ok(())
    }
}

/// The routes of these subnets: tasks have an IPv6 address too where the kernel supports IPv6.
fn routes(subnets: &Subnets) -> BTreeMap<IpNet, Ipv4Addr> {
    let has_ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
    let v4 = subnets.iter().map(|(subnet, node)| (IpNet::V4(*subnet), *node));
    let v6 = subnets.iter().filter_map(|(subnet, node)| Some((IpNet::V6(subnet6_of(*subnet)?), *node)));
    v4.chain(v6.filter(|_| has_ipv6)).collect()
}

impl Netlink {
    /// Destinations of the routes over a device, of both families, except those that the kernel
    /// makes by itself.
    fn tunnel_routes(&mut self, ifindex: u32) -> io::Result<Vec<IpNet>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let answers = self.ask(RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP)?;
            found.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) if route.header.protocol == PROTOCOL => {
                    destination_over(&route, ifindex)
                }
                _ => None,
            }));
        }
        Ok(found)
    }

    fn put_tunnel_route(&mut self, tunnel: Tunnel, subnet: IpNet, node: Ipv4Addr) -> io::Result<()> {
        let mut route = route_to(tunnel.ifindex, subnet);
        let encapsulation = [
            RouteIpTunnel::Id(u64::from(Vni::between_tasks().0)),
            RouteIpTunnel::Destination(node),
            RouteIpTunnel::Source(tunnel.local),
            RouteIpTunnel::Ttl(OUTER_TTL),
        ];
        route.attributes.push(RouteAttribute::EncapType(RouteLwEnCapType::Ip));
        route
            .attributes
            .push(RouteAttribute::Encap(encapsulation.into_iter().map(RouteLwTunnelEncap::Ip).collect()));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewRoute(route), flags).map(drop)
    }

    fn delete_tunnel_route(&mut self, ifindex: u32, subnet: IpNet) -> io::Result<()> {
        match self.ask(RouteNetlinkMessage::DelRoute(route_to(ifindex, subnet)), NLM_F_ACK) {
            // The route is gone already, with its device or by somebody's hand.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done.map(drop),
        }
    }
}

fn route_to(ifindex: u32, subnet: IpNet) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = match subnet {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    route.header.destination_prefix_length = subnet.prefix_len();
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = PROTOCOL;
    route.header.scope = RouteScope::Link;
    route.header.kind = RouteType::Unicast;
    let address = match subnet.network() {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    route.attributes.push(RouteAttribute::Destination(address));
    route.attributes.push(RouteAttribute::Oif(ifindex));
    route
}

fn destination_over(route: &RouteMessage, ifindex: u32) -> Option<IpNet> {
    let is_over = route.attributes.contains(&RouteAttribute::Oif(ifindex));
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok().filter(|_| is_over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::PeerNode;

    #[test]
    fn every_other_member_with_a_subnet_has_a_route() {
        let address = |last| Ipv4Addr::new(10, 77, 0, last);
        let mut view = NodeView::new("a".into(), address(11));
        for (id, last, subnet) in
            [("a", 11, Some("10.128.0.0/24")), ("b", 12, Some("10.128.1.0/24")), ("c", 13, None)]
        {
            let subnet = subnet.map(|subnet| subnet.parse().unwrap());
            let node = PeerNode {
                id: id.into(),
                address: address(last),
                hostname: id.to_owned(),
                subnet,
                in_userspace: false,
                takes_cookies: true,
            };
            view.nodes.insert(node.id.clone(), node);
        }
        let wanted = wanted(&view);
        assert_eq!(wanted, Subnets::from([("10.128.1.0/24".parse().unwrap(), address(12))]));
        let expected = "fd6d:6573:68::a80:100/120".parse().unwrap();
        let has_ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
        assert_eq!(routes(&wanted).contains_key(&expected), has_ipv6, "a route to the IPv6 addresses");
    }

    #[test]
    fn a_route_reads_back() {
        for text in ["10.128.1.0/24", "fd6d:6573:68::a80:100/120"] {
            let subnet: IpNet = text.parse().unwrap();
            assert_eq!(destination_over(&route_to(7, subnet), 7), Some(subnet));
            assert_eq!(destination_over(&route_to(7, subnet), 8), None, "another device's route");
        }
    }
}
