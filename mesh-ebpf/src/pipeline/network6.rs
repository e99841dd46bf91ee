//! IPv6 on overlay networks: packets that a task sends by its veth on a network, and packets of
//! networks out of the tunnel.
//!
//! A member's IPv6 address follows from its IPv4 address ([`Subnet6`]), so the tables of IPv4 say
//! who has it, and packets go as IPv4's do ([`super::network`]). Virtual IPs are IPv4 only.
//!
//! A task can only send as itself: as its address on the network, and, for what stays on the
//! bridge, as the link-local address that belongs to its MAC. Solicitations for addresses elsewhere
//! are answered here with [`MESH_MAC`]; what would let a task speak for others never reaches the
//! bridge: advertisements of their addresses, router advertisements, redirects. Extension headers
//! other than a fragment's are dropped, as they could hide one of these.

use super::Origin;
use super::network::{Arrival, refused, to_neighbour, to_node};
use crate::abi::{Address, DropReason, EndpointKey, Link, MESH_MAC, Subnet6, protocol};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::{eth, icmp, ip, ipv6, ndp};
use crate::rewrite;
use crate::verdict::Fate;

/// Number of the hop-by-hop header.
const HOP_BY_HOP: u8 = 0;

/// As whom a task sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// As its own address on the network.
    Own,
    /// As its own link-local address.
    OwnLink,
    /// Without an address, as before it has one.
    Nobody,
    /// As anybody else.
    Other,
}

impl Sender {
    #[inline(always)]
    fn of(source: &Address, link: &Link, subnet: &Subnet6) -> Self {
        if is_own(source, link, subnet) {
            Self::Own
        } else if *source == ndp::link_local(link.mac) {
            Self::OwnLink
        } else if source.is_none() {
            Self::Nobody
        } else {
            Self::Other
        }
    }
}

/// Whether this is the task's own address on the network.
#[inline(always)]
fn is_own(address: &Address, link: &Link, subnet: &Subnet6) -> bool {
    subnet.has(address) && u32::from_ne_bytes(address.v4_octets()) == link.address
}

/// Tail call of [`super::overlay`], which has checked the frame's source MAC: an IPv6 packet of a
/// task.
#[inline(always)]
pub fn overlay6<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let link = lookups.link(packet.ifindex()).filter(|link| link.network != 0);
    let (Some(config), Some(link)) = (lookups.config(), link) else {
        return refused(lookups, DropReason::UnknownLink);
    };
    let Some(subnet) = lookups.subnet6(link.network) else {
        return refused(lookups, DropReason::Isolated);
    };
    let Some(ip) = ipv6::parse(packet, eth::LEN) else {
        return refused(lookups, DropReason::Malformed);
    };
    let sender = Sender::of(&ip.source, link, subnet);
    if ip.protocol == icmp::PROTOCOL_V6 {
        match packet.read_bytes::<1>(eth::LEN + ipv6::LEN) {
            Some([kind]) if ndp::is_discovery(kind) => {
                return discover(packet, lookups, link, subnet, &ip, sender);
            }
            Some(_) => {}
            None => return refused(lookups, DropReason::Malformed),
        }
    }
    if is_multicast(&ip.destination) {
        return multicast(packet, lookups, ip.protocol, sender);
    }
    if sender != Sender::Own {
        return refused(lookups, DropReason::SpoofedSource);
    }
    if is_extension(ip.protocol) || !subnet.has(&ip.destination) {
        return refused(lookups, DropReason::Isolated);
    }
    let key = EndpointKey::new(link.network, ip.destination.v4_octets());
    match lookups.endpoint(&key) {
        Some(endpoint) if !endpoint.is_local() => to_node(packet, lookups, config, link.network, endpoint),
        Some(endpoint) => to_neighbour(packet, lookups, endpoint),
        None => refused(lookups, DropReason::UnknownEndpoint),
    }
}

/// Handles a multicast, which stays on this node's bridge: datagrams and ICMPv6 of the task's own,
/// and reports of its groups.
#[inline(always)]
fn multicast<P: Packet, L: Lookups>(packet: &P, lookups: &L, next_header: u8, sender: Sender) -> Fate {
    let is_report = next_header == HOP_BY_HOP && ndp::is_group_report(packet);
    match sender {
        Sender::Other => refused(lookups, DropReason::SpoofedSource),
        _ if is_report => Fate::PASS,
        Sender::Nobody => refused(lookups, DropReason::SpoofedSource),
        _ if matches!(next_header, protocol::UDP | icmp::PROTOCOL_V6) => Fate::PASS,
        _ => refused(lookups, DropReason::Isolated),
    }
}

/// Handles neighbour discovery: answers a solicitation for an address that is not on this node, and
/// leaves to the bridge what a task may say about itself.
#[inline(always)]
fn discover<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    link: &Link,
    subnet: &Subnet6,
    ip: &ip::Header,
    sender: Sender,
) -> Fate {
    if sender == Sender::Other {
        return refused(lookups, DropReason::SpoofedSource);
    }
    if ip.ttl != ndp::HOP_LIMIT {
        return refused(lookups, DropReason::Malformed);
    }
    match packet.read_bytes::<1>(eth::LEN + ipv6::LEN) {
        // No router answers it, as a network has none.
        Some([ndp::ROUTER_SOLICITATION]) => return Fate::PASS,
        Some([ndp::SOLICITATION | ndp::ADVERTISEMENT]) => {}
        _ => return refused(lookups, DropReason::Isolated),
    }
    let len = ip.total_len - ipv6::LEN as u32;
    let Some(said) = ndp::parse(packet, len, sender != Sender::Nobody) else {
        return refused(lookups, DropReason::Malformed);
    };
    if said.mac.is_some_and(|mac| mac != link.mac) {
        return refused(lookups, DropReason::SpoofedSource);
    }
    if said.kind == ndp::ADVERTISEMENT {
        let is_about_itself = is_own(&said.target, link, subnet) || said.target == ndp::link_local(link.mac);
        return if is_about_itself && !said.is_router && sender != Sender::Nobody {
            Fate::PASS
        } else {
            refused(lookups, DropReason::SpoofedSource)
        };
    }
    if !is_elsewhere(lookups, link, subnet, &said.target) {
        return Fate::PASS;
    }
    match rewrite::advertise(packet, &said.target, MESH_MAC, &ip.source, link.mac) {
        Some(()) => Fate::BOUNCE,
        None => refused(lookups, DropReason::Resize),
    }
}

/// Whether another node has the address.
#[inline(always)]
fn is_elsewhere<L: Lookups>(lookups: &L, link: &Link, subnet: &Subnet6, address: &Address) -> bool {
    subnet.has(address)
        && lookups
            .endpoint(&EndpointKey::new(link.network, address.v4_octets()))
            .is_some_and(|endpoint| !endpoint.is_local())
}

/// Tail call of [`super::tunnel`]: an IPv6 packet of a network, which the VXLAN device has
/// decapsulated.
#[inline(always)]
pub fn network_tunnel6<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, origin: Origin) -> Fate {
    let Some(sender) = lookups.peer(&origin.address()) else {
        return refused(lookups, DropReason::UnknownPeer);
    };
    let arrival = judge(packet, lookups, 0, sender, origin.vni.network_number());
    match arrival.refused {
        Some(reason) => refused(lookups, reason),
        None => arrival.deliver(packet, lookups),
    }
}

/// Checks the IPv6 packet whose frame begins at `frame`: the node with index `sender` must have its
/// source on that network, and a task of this node its destination. Neighbour discovery never
/// crosses the tunnel.
#[inline(always)]
pub(super) fn judge<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    frame: usize,
    sender: u32,
    network: u32,
) -> Arrival {
    let none = |reason| Arrival::none(network, reason);
    let Some(subnet) = lookups.subnet6(network) else {
        return none(DropReason::ForeignSource);
    };
    let Some(ip) = ipv6::parse(packet, frame + eth::LEN) else {
        return none(DropReason::Malformed);
    };
    let kind = packet.read_bytes::<1>(frame + eth::LEN + ipv6::LEN);
    if ip.protocol == icmp::PROTOCOL_V6 && kind.is_none_or(|[kind]| ndp::is_discovery(kind)) {
        return none(DropReason::Malformed);
    }
    let holder = |address: &Address| {
        let key = EndpointKey::new(network, address.v4_octets());
        if subnet.has(address) { lookups.endpoint(&key) } else { None }
    };
    if sender == 0 || holder(&ip.source).is_none_or(|source| source.node != sender) {
        return none(DropReason::ForeignSource);
    }
    match holder(&ip.destination) {
        Some(endpoint) if endpoint.is_connected() => Arrival {
            refused: None,
            network,
            backend: 0,
            ifindex: endpoint.ifindex,
            mac: endpoint.mac,
            protocol: ip.protocol,
            // Matters to backends of virtual IPs, which are IPv4 only.
            is_fragment: false,
        },
        _ => none(DropReason::ForeignDestination),
    }
}

#[inline(always)]
const fn is_multicast(address: &Address) -> bool {
    address.0[0] == 0xff
}

/// Whether this is the number of an extension header (RFC 8200, RFC 6275, RFC 7401, RFC 5533) other
/// than a fragment's.
#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    const ROUTING: u8 = 43;
    const DESTINATION_OPTIONS: u8 = 60;
    const MOBILITY: u8 = 135;
    const HOST_IDENTITY: u8 = 139;
    const SHIM6: u8 = 140;
    matches!(next_header, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6)
}
