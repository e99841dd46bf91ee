//! Virtual IPs: connections to any port of a service's address on a network go to its tasks there.
//!
//! The client's node selects the backend, as the ingress node does for a published port, records
//! the flow ([`FlowKey::to_virtual_ip`]) and rewrites the destination (DNAT). For the tunnel and
//! the backend's node, the packet is one between two tasks: the backend sees the client's own
//! address. Replies take the same way, and the client's node rewrites their source: it finds the
//! flow by the virtual IP in the backend's entry, so no NAT entry is needed.
//!
//! A task would not accept a packet with its own address as the source. So a task that connects to
//! itself sees the virtual IP as the client.

use super::encapsulation::encapsulate;
use super::ingress::{self, Choice};
use super::network::{Arrival, node_address, to_neighbour};
use super::{
    Origin, TunnelLimits, answer_refusal, dropped, existing_flow, flow_ref, is_too_big, owner, packet_count,
    reply,
};
use crate::abi::{
    Address, Backend, Be16, Config, Direction, DropReason, Edge, Endpoint, EndpointKey, FlowKey, Link,
    MESH_MAC, Service, flow_event,
};
use crate::csum;
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::vxlan::Vni;
use crate::parse::{Segment, eth, fragment, icmp, ipv4};
use crate::rewrite::{self, Side, Translation};
use crate::select;
use crate::verdict::{Destination, Fate};

/// Tail call of [`super::overlay`]: a task's packet to a virtual IP of its network, or to an
/// address there that nobody has.
#[inline(always)]
pub fn virtual_ip<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let Some(config) = lookups.config() else {
        return dropped(lookups, DropReason::UnknownLink, Direction::Request);
    };
    let link = &Link::from_words(packet.handed_over());
    let Some(segment) = Segment::parse(packet, 0) else {
        return answer_uncommon(packet, lookups, link);
    };
    let destination = forward(packet, lookups, config, link, &segment);
    if let Some(tunnel) = destination.tunnel() {
        if tunnel.vni.is_encrypted() {
            return Fate::tail_call(Edge::Encrypt);
        }
        return encapsulate(packet, lookups, config, &segment, &tunnel, Direction::Request);
    }
    answer_refusal(packet, lookups, &segment, destination.by_device(), [0; 4])
}

/// Handles a packet to a virtual IP that is no whole TCP or UDP packet: answers echo requests,
/// hands fragments and ICMP errors to their programs, and drops the rest.
#[inline(always)]
fn answer_uncommon<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, link: &Link) -> Fate {
    const DESTINATION: usize = eth::LEN + ipv4::DESTINATION;
    let destination = packet.read_bytes::<4>(DESTINATION).unwrap_or_default();
    if lookups.virtual_ip(&EndpointKey::new(link.network, destination)).is_none() {
        return dropped(lookups, DropReason::UnknownEndpoint, Direction::Request);
    }
    if fragment::is_fragment(packet) {
        return Fate::tail_call(Edge::VirtualFragment);
    }
    if icmp::is_error(packet) {
        return Fate::tail_call(Edge::VirtualError);
    }
    match answer_echo(packet, link) {
        Some(()) => Fate::BOUNCE,
        None => dropped(lookups, DropReason::NoFlow, Direction::Request),
    }
}

/// Turns an ICMP echo request into its reply; `None` for other packets.
#[inline(always)]
fn answer_echo<P: Packet>(packet: &mut P, link: &Link) -> Option<()> {
    const ICMP: usize = eth::LEN + ipv4::LEN;
    const REQUEST: [u8; 2] = [8, 0];
    const REPLY: [u8; 2] = [0, 0];
    let [version] = packet.read_bytes::<1>(eth::LEN + ipv4::VERSION)?;
    let [protocol] = packet.read_bytes::<1>(eth::LEN + ipv4::PROTOCOL)?;
    let [kind, code, c0, c1] = packet.read_bytes::<4>(ICMP)?;
    if version != ipv4::VERSION_IHL || protocol != icmp::PROTOCOL_V4 || [kind, code] != REQUEST {
        return None;
    }
    let [c0, c1] = csum::replace([c0, c1], &REQUEST, &REPLY);
    let [kind, code] = REPLY;
    turn_around(packet, link)?;
    packet.write_bytes(ICMP, &[kind, code, c0, c1])
}

/// Exchanges source and destination of a packet that returns to the task that sent it. No checksum
/// changes.
#[inline(always)]
pub(super) fn turn_around<P: Packet>(packet: &mut P, link: &Link) -> Option<()> {
    const SOURCE: usize = eth::LEN + ipv4::SOURCE;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = packet.read_bytes::<8>(SOURCE)?;
    packet.write_bytes(SOURCE, &[d0, d1, d2, d3, s0, s1, s2, s3])?;
    rewrite::set_macs(packet, link.mac, MESH_MAC)
}

/// The key of a task's flow to a virtual IP; the source's port comes first.
#[inline(always)]
pub(super) fn client_key(link: &Link, virtual_ip: [u8; 4], ports: (Be16, Be16), ip_protocol: u8) -> FlowKey {
    let client = (link.address.to_ne_bytes(), ports.0);
    FlowKey::to_virtual_ip(link.network, virtual_ip, client, (ip_protocol, ports.1.get()))
}

/// The key of a task's flow to itself, of the packet that it sends in reply to the virtual IP.
#[inline(always)]
pub(super) fn own_reply_key(
    link: &Link,
    virtual_ip: [u8; 4],
    ports: (Be16, Be16),
    ip_protocol: u8,
) -> FlowKey {
    client_key(link, virtual_ip, (ports.1, ports.0), ip_protocol)
}

/// The key of the flow that a packet of this backend to `client` would be a reply of; the source's
/// port comes first.
#[inline(always)]
pub(super) fn reply_key(backend: &Backend, client: [u8; 4], ports: (Be16, Be16), ip_protocol: u8) -> FlowKey {
    let virtual_ip = backend.task_address6.v4_octets();
    FlowKey::to_virtual_ip(backend.network, virtual_ip, (client, ports.1), (ip_protocol, ports.0.get()))
}

/// Forwards a client's packet to the backend of its flow.
#[inline(always)]
pub(super) fn forward<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    link: &Link,
    segment: &Segment,
) -> Destination {
    let drop = |reason| Destination::decided(dropped(lookups, reason, Direction::Request));
    let virtual_ip = segment.ip.destination.v4_octets();
    if segment.ip.ttl <= 1 {
        return drop(DropReason::TtlExpired);
    }
    let transport = &segment.transport;
    let ports = (transport.source_port_be, transport.destination_port_be);
    let key = client_key(link, virtual_ip, ports, transport.protocol);
    let (mut avoided, mut choice) = (0, Choice::none(Fate::PASS));
    let mut is_new = true;
    if let Some(flow) = flow_ref::find(lookups.flows(), &key) {
        let existing = existing_flow::continue_flow(packet, lookups, segment, &key, &flow);
        (avoided, choice, is_new) = (existing.avoided, existing.choice, existing.is_superseded);
    } else if link.backend != 0
        && !segment.transport.flags.is_opening()
        && is_own_reply(packet, lookups, link, segment)
    {
        return turn_back(packet, lookups, link);
    }
    if is_new {
        let Some(service) = lookups.virtual_ip(&EndpointKey::new(link.network, virtual_ip)) else {
            return drop(DropReason::UnknownEndpoint);
        };
        choice = open(packet, lookups, segment, service, &key, avoided);
    }
    let Some(backend) = choice.backend else {
        return Destination::decided(choice.fate);
    };
    let member = backend.task_address;
    let limits = TunnelLimits::of_network(config, link.network);
    let destination = match lookups.endpoint(&EndpointKey::new(link.network, member.v4_octets())) {
        Some(endpoint) if endpoint.is_connected() && endpoint.ifindex == packet.ifindex() => {
            turn_back(packet, lookups, link)
        }
        Some(endpoint) if endpoint.is_connected() => {
            let is_written = translate(packet, segment, Side::Destination, member).is_some()
                && rewrite::set_macs(packet, endpoint.mac, MESH_MAC).is_some();
            if is_written {
                Destination::decided(Fate::deliver(endpoint.ifindex))
            } else {
                drop(DropReason::Malformed)
            }
        }
        Some(_) if is_too_big(packet, limits, segment) => {
            Destination::decided(Fate::refuse(DropReason::TooBig))
        }
        Some(endpoint) if !endpoint.is_local() => match node_address(lookups, endpoint) {
            Some(peer) => {
                let is_written = owner::clamp_mss(packet, limits, segment).is_some()
                    && translate(packet, segment, Side::Destination, member).is_some();
                if is_written {
                    Destination::node(peer, Vni::network(link.network))
                } else {
                    drop(DropReason::Malformed)
                }
            }
            None => drop(DropReason::UnknownNode),
        },
        _ => drop(DropReason::UnknownBackend),
    };
    if destination.is_forwarded() {
        let count = packet_count(packet, segment);
        lookups.count_traffic(backend.service_index, choice.id, Direction::Request, count);
    }
    destination
}

/// Selects the backend of a new flow and records the flow.
#[inline(always)]
fn open<'a, P: Packet, L: Lookups>(
    packet: &P,
    lookups: &'a L,
    segment: &Segment,
    service: &Service,
    key: &FlowKey,
    avoided: u32,
) -> Choice<'a> {
    if !segment.may_open() {
        return Choice::none(Fate::refuse(DropReason::NoFlow));
    }
    let Some(id) = select::select(lookups, service, &segment.ip.source, avoided) else {
        lookups.count_no_backend(service.index);
        return Choice::none(Fate::refuse(DropReason::NoBackend));
    };
    let sequence = segment.transport.sequence;
    ingress::record_flow(packet, lookups, key, service.index, id, flow_event::SYN, sequence)
}

/// Delivers a packet of a task's connection to itself.
#[inline(always)]
fn turn_back<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, link: &Link) -> Destination {
    Destination::decided(match turn_around(packet, link) {
        Some(()) => Fate::deliver(packet.ifindex()),
        None => dropped(lookups, DropReason::Malformed, Direction::Request),
    })
}

/// Whether the packet is a reply in a task's connection to itself, in which the task sees the
/// virtual IP as the client. If so, records and counts it.
#[inline(always)]
fn is_own_reply<P: Packet, L: Lookups>(packet: &P, lookups: &L, link: &Link, segment: &Segment) -> bool {
    let transport = &segment.transport;
    let ports = (transport.source_port_be, transport.destination_port_be);
    let key = own_reply_key(link, segment.ip.destination.v4_octets(), ports, transport.protocol);
    reply::account_of(packet, lookups, segment, &key, link.backend)
}

/// The result for a packet from a backend. Both fields are always written: see [`Fate`].
pub(super) struct Restored {
    /// Whether it is a reply of a flow to the virtual IP, which is its source now.
    pub(super) is_reply: bool,
    /// Why the packet is dropped; `None` if it isn't.
    pub(super) refused: Option<DropReason>,
}

impl Restored {
    /// The packet is one between two addresses, and does not change.
    pub(super) const BY_ADDRESS: Self = Self { is_reply: false, refused: None };

    /// The packet is a reply of a flow. `is_written` says whether its source could be rewritten.
    #[inline(always)]
    pub(super) const fn reply(is_written: bool) -> Self {
        Self { is_reply: true, refused: if is_written { None } else { Some(DropReason::Malformed) } }
    }

    /// Passes the packet on to `endpoint`, on this node: a reply goes into the task's namespace,
    /// and a packet by address the way of every packet between neighbours.
    #[inline(always)]
    pub(super) fn pass_on<P: Packet, L: Lookups>(
        &self,
        packet: &mut P,
        lookups: &L,
        endpoint: &Endpoint,
    ) -> Fate {
        if let Some(reason) = self.refused {
            return dropped(lookups, reason, Direction::Reply);
        }
        if !self.is_reply {
            return to_neighbour(packet, lookups, endpoint);
        }
        match rewrite::set_macs(packet, endpoint.mac, MESH_MAC) {
            Some(()) => Fate::deliver(endpoint.ifindex),
            None => dropped(lookups, DropReason::Malformed, Direction::Reply),
        }
    }
}

/// If the packet from this backend is a reply to a flow of this node's task, rewrites its source to
/// the virtual IP. A packet by address does not change. Neither does a packet of a backend that the
/// flow has left, as the client does not know that backend.
#[inline(always)]
pub(super) fn restore<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    segment: &Segment,
    (network, id): (u32, u32),
) -> Restored {
    let Some(backend) = lookups.backend(id).filter(|backend| backend.network == network) else {
        return Restored::BY_ADDRESS;
    };
    let (virtual_ip, transport) = (backend.task_address6, &segment.transport);
    let ports = (transport.source_port_be, transport.destination_port_be);
    let key = reply_key(backend, segment.ip.destination.v4_octets(), ports, transport.protocol);
    if segment.ip.ttl <= 1 {
        return Restored::BY_ADDRESS;
    }
    if !reply::account_of(packet, lookups, segment, &key, id) {
        return Restored::BY_ADDRESS;
    }
    Restored::reply(translate(packet, segment, Side::Source, virtual_ip).is_some())
}

/// Rewrites the address on one side; ports stay.
#[inline(always)]
fn translate<P: Packet>(packet: &mut P, segment: &Segment, side: Side, address: Address) -> Option<()> {
    let transport = &segment.transport;
    let (port_be, client_port_be) = match side {
        Side::Source => (transport.source_port_be, transport.destination_port_be),
        Side::Destination => (transport.destination_port_be, transport.source_port_be),
    };
    rewrite::translate(packet, segment, &Translation { side, address, port_be, client_port_be })
}

/// Delivers a packet from a backend of another node to a task of this node.
#[inline(always)]
pub(super) fn deliver_reply<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, arrival: &Arrival) -> Fate {
    if let Some(segment) = Segment::parse(packet, 0) {
        let restored = restore(packet, lookups, &segment, (arrival.network, arrival.backend));
        if let Some(reason) = restored.refused {
            return dropped(lookups, reason, Direction::Reply);
        }
    }
    arrival.deliver(packet, lookups)
}

/// Tail call of [`super::overlay`]: a packet from a backend of a virtual IP to another task of this
/// node.
#[inline(always)]
pub fn virtual_reply<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let (sender, endpoint) = Endpoint::from_reply_words(packet.handed_over());
    let Some(segment) = Segment::parse(packet, 0) else {
        return if icmp::is_error(packet) {
            Fate::tail_call(Edge::VirtualReplyError)
        } else if fragment::is_fragment(packet) {
            Fate::tail_call(Edge::VirtualReplyFragment)
        } else {
            to_neighbour(packet, lookups, &endpoint)
        };
    };
    let restored = restore(packet, lookups, &segment, sender);
    restored.pass_on(packet, lookups, &endpoint)
}

/// Tail call of [`super::tunnel`]: a packet from a backend of a virtual IP, which the VXLAN device
/// has decapsulated.
#[inline(always)]
pub fn virtual_tunnel<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, origin: Origin) -> Fate {
    let Some(sender) = lookups.peer(&origin.address()) else {
        return dropped(lookups, DropReason::UnknownPeer, Direction::Reply);
    };
    let arrival = Arrival::judge(packet, lookups, 0, sender, origin.vni.network_number());
    match arrival.refused {
        Some(reason) => dropped(lookups, reason, Direction::Reply),
        None if icmp::is_error(packet) => Fate::tail_call(Edge::VirtualTunnelError),
        None if arrival.is_fragment => Fate::tail_call(Edge::VirtualTunnelFragment),
        None => deliver_reply(packet, lookups, &arrival),
    }
}
