//! A small synchronous rtnetlink client: one request, all answers.
//!
//! Synchronous, as the kernel answers every request at once, and as a socket belongs to the network
//! namespace of the thread that opens it: a thread that entered a task's namespace queries that one
//! and no other.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_ebpf::abi::Mac;
use mesh_ebpf::parse::vxlan::{SOURCE_PORT_MAX, SOURCE_PORT_MIN};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVxlan};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Link {
    /// The interface's index.
    pub(crate) index: u32,
    /// The interface's name.
    pub(crate) name: String,
    /// The interface's Ethernet address.
    pub(crate) mac: Mac,
    /// The interface's MTU in bytes.
    pub(crate) mtu: u32,
    /// Kind of a software device: `veth`, `vxlan`, `bridge`; none for hardware.
    pub(crate) kind: Option<String>,
    /// Whether the interface is administratively up.
    pub(crate) is_up: bool,
    /// Whether something is at the other end: for a TAP device, the process that reads it.
    pub(crate) has_carrier: bool,
    /// Whether neighbours on it are resolved to Ethernet addresses.
    pub(crate) has_arp: bool,
    /// For a veth: the index of the other end, in that end's namespace.
    pub(crate) peer: Option<u32>,
    /// The other end's network namespace, if it isn't this one: the kernel's id for it here.
    pub(crate) peer_namespace: Option<i32>,
    /// The index of the bridge that it is a port of.
    pub(crate) bridge: Option<u32>,
    /// The fixed attributes of a VXLAN device.
    pub(crate) vxlan: Option<Vxlan>,
    /// Whether an XDP program runs in the driver (true) or generically (false).
    pub(crate) is_xdp_native: Option<bool>,
}

/// The attributes of a VXLAN device that can't be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Vxlan {
    /// UDP port.
    pub(crate) port: u16,
    /// Whether each packet says where it goes (collect-metadata mode).
    pub(crate) is_external: bool,
    /// First and last source port of the packets it sends.
    pub(crate) source_ports: (u16, u16),
}

impl Vxlan {
    /// The attributes of the tunnel device on this port.
    pub(crate) const fn tunnel(port: u16) -> Self {
        Self { port, is_external: true, source_ports: (SOURCE_PORT_MIN, SOURCE_PORT_MAX) }
    }
}

/// The kernel's route to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// The interface's index.
    pub(crate) ifindex: u32,
    /// The gateway, or the address itself if it is on the link.
    pub(crate) next_hop: Ipv4Addr,
}

/// A socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    pub(super) socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one message and collects the answers.
    pub(super) fn ask<M: NetlinkSerializable + NetlinkDeserializable>(
        &mut self,
        message: M,
        flags: u16,
    ) -> io::Result<Vec<M>> {
        self.sequence = self.sequence.wrapping_add(1);
        let payload = NetlinkPayload::InnerMessage(message);
        let mut request = NetlinkMessage::new(NetlinkHeader::default(), payload);
        request.header.sequence_number = self.sequence;
        request.header.flags = NLM_F_REQUEST | flags;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut at = 0;
            while at < datagram.len() {
                let answer = NetlinkMessage::<M>::deserialize(&datagram[at..]).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).unwrap_or_default().next_multiple_of(4);
                at += length.max(16);
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Lists every interface of the namespace.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(read_link(message)),
                _ => None,
            })
            .collect())
    }

    /// Every IPv4 address, with its interface.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr)>> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetAddress(request), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => read_address(&message),
                _ => None,
            })
            .collect())
    }

    /// Every IPv6 address that other hosts can use, with its interface: no link-local ones, none
    /// that is tentative.
    pub(crate) fn addresses6(&mut self) -> io::Result<Vec<(u32, Ipv6Addr)>> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet6;
        let answers = self.ask(RouteNetlinkMessage::GetAddress(request), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => read_address6(&message),
                _ => None,
            })
            .collect())
    }

    /// Interfaces with a default route.
    pub(crate) fn default_route_interfaces(&mut self) -> io::Result<Vec<u32>> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP)?;
        let mut interfaces = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
            let is_default =
                route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast;
            let interface = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            interfaces.extend(interface.filter(|index| is_default && !interfaces.contains(index)));
        }
        Ok(interfaces)
    }

    /// The route from this node to `address`.
    pub(crate) fn route_to(&mut self, address: Ipv4Addr) -> io::Result<Option<Route>> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.destination_prefix_length = 32;
        request.header.scope = RouteScope::Universe;
        request.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        let answers = self.ask(RouteNetlinkMessage::GetRoute(request), NLM_F_ACK)?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => read_route(&route, address),
            _ => None,
        }))
    }

    /// The IPv4 neighbours whose Ethernet address is known.
    pub(crate) fn neighbours(&mut self) -> io::Result<BTreeMap<(u32, Ipv4Addr), Neighbour>> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetNeighbour(request), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => read_neighbour(&message),
                _ => None,
            })
            .collect())
    }

    /// Makes the kernel resolve a neighbour, or confirm it if it has gone stale.
    pub(crate) fn resolve(&mut self, ifindex: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        request.header.ifindex = ifindex;
        request.header.state = NeighbourState::None;
        request.header.flags = NeighbourFlags::Use;
        request.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewNeighbour(request), flags).map(drop)
    }

    /// Creates a VXLAN device in collect-metadata mode, up, without ARP: a route over it needs to
    /// name only the tunnel's other end.
    pub(crate) fn add_vxlan(&mut self, name: &str, port: u16, mtu: u32) -> io::Result<()> {
        let Vxlan { port, is_external, source_ports: (first, last) } = Vxlan::tunnel(port);
        let message = LinkMessageBuilder::<LinkVxlan>::new(name)
            .collect_metadata(is_external)
            .learning(false)
            .port(port)
            .port_range(first, last)
            .mtu(mtu)
            .arp(false)
            .up()
            .build();
        self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Sets the tunnel device's MTU and brings it up, as [`Netlink::add_vxlan`] makes it.
    pub(crate) fn set_up(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).arp(false).up().build();
        self.ask(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Deletes an interface.
    pub(crate) fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).build();
        self.ask(RouteNetlinkMessage::DelLink(message), NLM_F_ACK).map(drop)
    }
}

/// An entry of the neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// The neighbour's Ethernet address.
    pub(crate) mac: Mac,
    /// Whether the kernel has lately confirmed that it is reachable, or the entry is permanent.
    pub(crate) is_confirmed: bool,
}

pub(super) fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        is_up: message.header.flags.contains(LinkFlags::Up),
        has_carrier: message.header.flags.contains(LinkFlags::LowerUp),
        has_arp: !message.header.flags.contains(LinkFlags::Noarp),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(address) => link.mac = read_mac(&address).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(peer) => link.peer = Some(peer),
            LinkAttribute::LinkNetNsId(id) => link.peer_namespace = u32::try_from(id).is_ok().then_some(id),
            LinkAttribute::Controller(bridge) => link.bridge = Some(bridge),
            LinkAttribute::LinkInfo(infos) => read_link_info(&mut link, &infos),
            LinkAttribute::Xdp(xdp) => {
                link.is_xdp_native = xdp.iter().find_map(|attribute| match attribute {
                    LinkXdp::Attached(XdpAttached::Driver) => Some(true),
                    LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(false),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn read_link_info(link: &mut Link, infos: &[LinkInfo]) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vxlan(settings)) => {
                let mut vxlan = Vxlan::default();
                for setting in settings {
                    match setting {
                        InfoVxlan::Port(port) => vxlan.port = *port,
                        InfoVxlan::CollectMetadata(is_external) => vxlan.is_external = *is_external,
                        InfoVxlan::PortRange(source_ports) => vxlan.source_ports = *source_ports,
                        _ => {}
                    }
                }
                link.vxlan = Some(vxlan);
            }
            _ => {}
        }
    }
}

pub(super) fn read_address(message: &AddressMessage) -> Option<(u32, Ipv4Addr)> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links `Address` is the other end's: `Local` wins.
            AddressAttribute::Local(IpAddr::V4(local)) => return Some((message.header.index, *local)),
            AddressAttribute::Address(IpAddr::V4(v4)) => address = Some(*v4),
            _ => {}
        }
    }
    address.map(|address| (message.header.index, address))
}

fn read_address6(message: &AddressMessage) -> Option<(u32, Ipv6Addr)> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut address, mut local) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V6(v6)) => local = Some(*v6),
            AddressAttribute::Address(IpAddr::V6(v6)) => address = Some(*v6),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let is_usable = message.header.scope == AddressScope::Universe
        && !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    local.or(address).filter(|_| is_usable).map(|address| (message.header.index, address))
}

fn read_route(route: &RouteMessage, destination: Ipv4Addr) -> Option<Route> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut ifindex, mut next_hop) = (None, destination);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => next_hop = *gateway,
            _ => {}
        }
    }
    ifindex.map(|ifindex| Route { ifindex, next_hop })
}

fn read_neighbour(message: &NeighbourMessage) -> Option<((u32, Ipv4Addr), Neighbour)> {
    let is_confirmed = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp => true,
        NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => false,
        _ => return None,
    };
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(*v4),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = read_mac(bytes),
            _ => {}
        }
    }
    Some(((message.header.ifindex, address?), Neighbour { mac: mac?, is_confirmed }))
}

fn read_mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

/// Whether a link is one end of a veth pair.
pub(crate) fn is_veth(link: &Link) -> bool {
    link.kind.as_deref() == Some(&InfoKind::Veth.to_string())
}
