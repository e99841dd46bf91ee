//! The owner's role, at the node that runs the task: translates the destination of requests to the
//! task, and the source of its replies back. Only this role has translation state, one entry
//! for each flow.
//!
//! A request carries everything that its entry consists of, so any packet of the client restores a
//! lost entry: as a half-open one, until the task has sent a segment that confirms that the
//! connection exists.
//!
//! If the backend of a request is not on this node, a new connection is dropped: this node's mesh
//! table may be a moment behind that of the ingress node, and the client retransmits its SYN. Any
//! other packet, and any packet for a backend that is down, is answered by a RST by the way that it
//! came.

use super::client_port::port_at_task;
use super::flow_ref;
use super::{TunnelLimits, dropped, is_too_big, macs, reply};
use crate::abi::{
    Address, Backend, BackendState, Config, Direction, DropReason, FlowKey, Nat, NatKey, VipId, backend_flag,
    flow_event,
};
use crate::conntrack;
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::tcp::Flags;
use crate::parse::vxlan::Vni;
use crate::parse::{Segment, ipv4, ipv6};
use crate::rewrite::{self, Side, Translation};
use crate::verdict::{Destination, Fate};

/// The way by which a request reached the task's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// By an uplink of this node, which is the ingress node.
    Uplink,
    /// Through the tunnel, from another node.
    Node {
        /// IPv4 address of the ingress node.
        peer: [u8; 4],
        /// Whether the ingress node asks to answer the client directly.
        is_dsr: bool,
    },
}

/// Translates a request for a task of this node and delivers it.
#[inline(always)]
pub(super) fn deliver<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
    id: u32,
    source: &Arrival,
) -> Fate {
    // Not by `backend_for`: the verifier loses track of an address that is chosen by the IP version
    // twice.
    let backend = match lookups.backend(id) {
        Some(backend) if backend.is_alive() && backend.is_local() => backend,
        other => return turn_away(lookups, segment, other),
    };
    let address = if segment.ip.is_v6 { backend.task_address6 } else { backend.task_address };
    if address.is_none() {
        return Fate::refuse(DropReason::NoBackend);
    }
    if segment.ip.ttl <= 1 {
        return dropped(lookups, DropReason::TtlExpired, Direction::Request);
    }
    let Some(mut fresh) = fresh_entry(packet, lookups, config, segment, id, source) else {
        return dropped(lookups, DropReason::Malformed, Direction::Request);
    };
    let client = port_at_task(lookups, backend, segment, &mut fresh);
    if let Some(reason) = client.refused {
        return dropped(lookups, reason, Direction::Request);
    }
    let to = Translation {
        side: Side::Destination,
        address,
        port_be: backend.task_port_be,
        client_port_be: client.port_be,
    };
    match rewrite_request(packet, config, segment, backend, &to, answers_by_tunnel(config, &fresh)) {
        Some(()) => Fate::deliver(backend.ifindex),
        None => dropped(lookups, DropReason::Malformed, Direction::Request),
    }
}

/// The backend with this id, if it is on this node, live, and has an address of the packet's IP
/// version.
#[inline(always)]
pub(super) fn backend_for<'a, L: Lookups>(lookups: &'a L, segment: &Segment, id: u32) -> Option<&'a Backend> {
    let backend = lookups.backend(id)?;
    let address = if segment.ip.is_v6 { &backend.task_address6 } else { &backend.task_address };
    if backend.is_alive() && backend.is_local() && !address.is_none() { Some(backend) } else { None }
}

/// Whether the allow-list of the backend's published port, if it has one, contains this client.
#[inline(always)]
pub(super) fn is_allowed<L: Lookups>(lookups: &L, backend: &Backend, client: &Address) -> bool {
    backend.flags & backend_flag::ALLOW_LIST == 0 || lookups.is_allowed(backend.service_index, client)
}

/// The fate of a request whose backend is not on this node, or no longer live.
#[inline(always)]
fn turn_away<L: Lookups>(lookups: &L, segment: &Segment, backend: Option<&Backend>) -> Fate {
    let is_down = backend.is_some_and(|backend| backend.state == BackendState::Down as u8);
    if segment.transport.flags.is_opening() && !is_down {
        return dropped(lookups, DropReason::UnknownBackend, Direction::Request);
    }
    Fate::refuse(DropReason::BackendGone)
}

/// The translation that this packet would create.
#[inline(always)]
fn fresh_entry<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
    id: u32,
    source: &Arrival,
) -> Option<Nat> {
    let now_ns = lookups.now_ns();
    let (client_mac, node_mac) = macs(packet)?;
    Some(Nat {
        seen_ns: now_ns,
        opened_ns: now_ns,
        vip: segment.ip.destination,
        via: match source {
            Arrival::Uplink => Address::NONE,
            Arrival::Node { peer, .. } => Address::v4(*peer),
        },
        vip_port_be: segment.transport.destination_port_be,
        client_port_be: segment.transport.source_port_be,
        backend: id,
        events: conntrack::beginning(&segment.transport)
            | if is_to_answer_directly(lookups, segment, source) { flow_event::DSR } else { 0 },
        uplink: match source {
            Arrival::Uplink => packet.ifindex(),
            // The VXLAN device, even if this packet was decapsulated by a program: the way may
            // change from packet to packet.
            Arrival::Node { .. } => config.tunnel_ifindex,
        },
        client_mac,
        node_mac,
        sequence: segment.transport.sequence,
        reserved: 0,
    })
}

/// Whether the ingress node asks for a direct answer and the client is elsewhere. A client on this
/// node (its host, a container behind the node's address, the task itself) can't be reached by an
/// uplink: it is answered by the way that its packets came.
#[inline(always)]
fn is_to_answer_directly<L: Lookups>(lookups: &L, segment: &Segment, source: &Arrival) -> bool {
    matches!(source, Arrival::Node { is_dsr: true, .. })
        && lookups.address_index(&segment.ip.source).is_none()
}

/// Whether replies go back to the ingress node through the tunnel.
#[inline(always)]
fn answers_by_tunnel(config: &Config, nat: &Nat) -> bool {
    !nat.via.is_none() && !answers_directly(config, nat)
}

/// Whether replies go to the client by an uplink of this node, though its requests come through the
/// tunnel.
#[inline(always)]
fn answers_directly(config: &Config, nat: &Nat) -> bool {
    nat.events & flow_event::DSR != 0 && config.uplink_ifindex != 0
}

/// Rewrites the request's headers for the task.
#[inline(always)]
fn rewrite_request<P: Packet>(
    packet: &mut P,
    config: &Config,
    segment: &Segment,
    backend: &Backend,
    to: &Translation,
    answers_by_tunnel: bool,
) -> Option<()> {
    if answers_by_tunnel {
        clamp_mss(packet, TunnelLimits::of_ports(config), segment)?;
    }
    rewrite::translate(packet, segment, to)?;
    let (_, node_mac) = macs(packet)?;
    rewrite::set_macs(packet, backend.task_mac, node_mac)
}

/// Lowers the MSS that a SYN or SYN-ACK announces to one whose packets fit the tunnel.
#[inline(always)]
pub(super) fn clamp_mss<P: Packet>(packet: &mut P, limits: TunnelLimits, segment: &Segment) -> Option<()> {
    if !segment.transport.flags.has(Flags::SYN) || limits.mss == 0 {
        return Some(());
    }
    let longer = if segment.ip.is_v6 { (ipv6::LEN - ipv4::LEN) as u16 } else { 0 };
    rewrite::clamp_mss(packet, &segment.transport, limits.mss.saturating_sub(longer))
}

/// Handles a packet that a task of this node sends: a reply if there is a translation for it, else
/// traffic of its own, which is passed.
#[inline(always)]
pub(super) fn answer<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
) -> Destination {
    let key = NatKey {
        client: segment.ip.destination,
        client_port_be: segment.transport.destination_port_be,
        task_port_be: segment.transport.source_port_be,
        task: NatKey::task(segment.ip.protocol, packet.ifindex()),
    };
    let Some(found) = flow_ref::find(lookups.nats(), &key) else {
        return Destination::decided(Fate::PASS);
    };
    if segment.ip.ttl <= 1 {
        return Destination::decided(dropped(lookups, DropReason::TtlExpired, Direction::Reply));
    }
    let nat = &found.value();
    if answers_by_tunnel(config, nat) && is_too_big(packet, TunnelLimits::of_ports(config), segment) {
        return Destination::decided(Fate::refuse(DropReason::TooBig));
    }
    flow_ref::record_segment(
        lookups.nats(),
        &key,
        &found,
        Direction::Reply,
        &segment.transport,
        lookups.now_ns(),
    );
    if nat.via.is_none() && !account(packet, lookups, segment, nat) {
        return Destination::decided(dropped(lookups, DropReason::NoFlow, Direction::Reply));
    }
    match send_back(packet, config, segment, nat) {
        Some(()) => way_back(lookups, config, nat),
        None => Destination::decided(dropped(lookups, DropReason::Malformed, Direction::Reply)),
    }
}

/// Records and counts a reply for a client of this node; `false` if the client's connection has
/// moved to another task.
#[inline(always)]
fn account<P: Packet, L: Lookups>(packet: &P, lookups: &L, segment: &Segment, nat: &Nat) -> bool {
    let Some(address_index) = lookups.address_index(&nat.vip) else {
        return true;
    };
    let key = FlowKey {
        client: segment.ip.destination,
        client_port_be: nat.client_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, segment.ip.protocol, nat.vip_port_be.get()),
    };
    reply::account_local(packet, lookups, segment, &key, nat.backend)
}

/// Rewrites a reply's headers for its way back to the client.
#[inline(always)]
fn send_back<P: Packet>(packet: &mut P, config: &Config, segment: &Segment, nat: &Nat) -> Option<()> {
    let to = Translation {
        side: Side::Source,
        address: nat.vip,
        port_be: nat.vip_port_be,
        client_port_be: nat.client_port_be,
    };
    if !nat.via.is_none() {
        // The client's packets come through the tunnel, whichever way these replies go.
        clamp_mss(packet, TunnelLimits::of_ports(config), segment)?;
        return rewrite::translate(packet, segment, &to);
    }
    rewrite::translate(packet, segment, &to)?;
    rewrite::set_macs(packet, nat.client_mac, nat.node_mac)
}

/// Where a task's packet for the client goes.
#[inline(always)]
pub(super) fn way_back<L: Lookups>(lookups: &L, config: &Config, nat: &Nat) -> Destination {
    if nat.via.is_none() {
        return Destination::decided(Fate::emit(nat.uplink));
    }
    if answers_directly(config, nat) {
        return Destination::decided(Fate::route(config.uplink_ifindex));
    }
    let load = lookups.load(nat.backend).unwrap_or(0);
    Destination::node(nat.via.v4_octets(), Vni::reply(load).of(nat.backend))
}
