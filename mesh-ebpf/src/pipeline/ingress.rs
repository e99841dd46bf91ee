//! The ingress role: finds the backend of a client's packet for a published port.
//!
//! It doesn't change the packet's content, and its only state is the flow's backend.

use super::flow_ref;
use super::guard::{self, Admission};
use super::{
    At, TunnelLimits, dropped, encapsulation, existing_flow, is_too_big, macs, outgoing, owner, packet_count,
};
use crate::abi::{
    Backend, Config, Direction, DropReason, Flow, FlowKey, Mode, ServiceKey, VipId, flow_event, service_flag,
};
use crate::conntrack;
use crate::lookups::{Connection, FlowTable, Lookups, Opened};
use crate::packet::Packet;
use crate::parse::Segment;
use crate::parse::vxlan::Vni;
use crate::rewrite;
use crate::verdict::{Destination, Fate};

/// What happens to a packet. Every field is always written: see [`Fate`].
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    /// The backend that the packet goes to; `None`: the packet isn't forwarded, its fate is
    /// [`fate`](Self::fate).
    pub(super) backend: Option<&'a Backend>,
    /// The backend's id.
    pub(super) id: u32,
    /// Whether the task's node is to answer the client directly.
    is_dsr: bool,
    pub(super) fate: Fate,
}

impl<'a> Choice<'a> {
    /// The packet goes to this backend, as part of a flow with these events.
    #[inline(always)]
    pub(super) const fn of(id: u32, backend: &'a Backend, events: u32) -> Self {
        Self { backend: Some(backend), id, is_dsr: is_dsr(events), fate: Fate::PASS }
    }

    /// The packet is not forwarded.
    #[inline(always)]
    pub(super) const fn none(fate: Fate) -> Self {
        Self { backend: None, id: 0, is_dsr: false, fate }
    }
}

/// XDP: forwards packets for other nodes, and passes the rest to TC.
#[inline(always)]
pub(super) fn forward_xdp<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
) -> Fate {
    let choice = choose(packet, lookups, segment, At::Xdp);
    let Some(backend) = choice.backend else {
        return choice.fate;
    };
    if backend.is_local() || segment.ip.total_len > config.tunnel_mtu {
        return Fate::PASS;
    }
    let Some(node) = lookups.node(backend.node) else {
        return Fate::PASS;
    };
    if node.mac.is_none() || node.ifindex != packet.ifindex() {
        return Fate::PASS;
    }
    let vni = Vni::request(choice.id, choice.is_dsr);
    let outer = encapsulation::outer_headers(packet, config, segment, node, vni, Direction::Request);
    if packet.push_outer().is_none() || rewrite::write_outer(packet, segment.ip.total_len, &outer).is_none() {
        return dropped(lookups, DropReason::Resize, Direction::Request);
    }
    lookups.count_traffic(
        backend.service_index,
        choice.id,
        Direction::Request,
        packet_count(packet, segment),
    );
    Fate::BOUNCE
}

/// TC: forwards a packet to another node, or delivers it to a task of this node.
#[inline(always)]
pub(super) fn forward<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
) -> Destination {
    let choice = choose(packet, lookups, segment, At::Tc);
    let Some(backend) = choice.backend else {
        return Destination::decided(choice.fate);
    };
    let destination = if backend.is_local() {
        let source = owner::Arrival::Uplink;
        Destination::decided(owner::deliver(packet, lookups, config, segment, choice.id, &source))
    } else {
        match lookups.node(backend.node).filter(|node| !node.address.is_none()) {
            Some(_) if is_too_big(packet, TunnelLimits::of_ports(config), segment) => {
                Destination::decided(Fate::refuse(DropReason::TooBig))
            }
            Some(node) => Destination::node(node.address.v4_octets(), Vni::request(choice.id, choice.is_dsr)),
            None => Destination::decided(dropped(lookups, DropReason::UnknownNode, Direction::Request)),
        }
    };
    if destination.is_forwarded() {
        lookups.count_traffic(
            backend.service_index,
            choice.id,
            Direction::Request,
            packet_count(packet, segment),
        );
    }
    destination
}

/// Chooses the backend of a packet: that of its flow, or one for a new flow.
#[inline(always)]
fn choose<'a, P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &'a L,
    segment: &Segment,
    at: At,
) -> Choice<'a> {
    let Some(address_index) = lookups.address_index(&segment.ip.destination) else {
        return Choice::none(Fate::PASS);
    };
    let transport = &segment.transport;
    let key = FlowKey {
        client: segment.ip.source,
        client_port_be: transport.source_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, segment.ip.protocol, transport.destination_port_be.get()),
    };
    let mut avoided = 0;
    if let Some(flow) = flow_ref::find(lookups.flows(), &key) {
        if conntrack::is_outgoing(flow.value().events) {
            if outgoing::owns(lookups, segment, &key, &flow) {
                return Choice::none(Fate::PASS);
            }
            return open(packet, lookups, segment, &key, 0, at);
        }
        let existing = existing_flow::continue_flow(packet, lookups, segment, &key, &flow);
        if !existing.is_superseded {
            return existing.choice;
        }
        avoided = existing.avoided;
    }
    open(packet, lookups, segment, &key, avoided, at)
}

/// Opens a flow for a packet that has none, or whose flow's backend, `avoided`, left its SYN
/// unanswered (0: none did).
#[inline(always)]
fn open<'a, P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &'a L,
    segment: &Segment,
    key: &FlowKey,
    avoided: u32,
    at: At,
) -> Choice<'a> {
    let (ip, transport) = (&segment.ip, &segment.transport);
    if !ip.source.is_host() || ip.source == ip.destination {
        // Martians (RFC 1812, section 5.3.7): the host stack drops and counts them.
        return Choice::none(Fate::PASS);
    }
    let service_key =
        ServiceKey { port_be: transport.destination_port_be, protocol: ip.protocol, reserved: 0 };
    let Some(service) = lookups.service(&service_key) else {
        return Choice::none(Fate::PASS);
    };
    if let Mode::Proxy = Mode::from_byte(service.mode) {
        return Choice::none(Fate::PASS);
    }
    // No socket owns a new TCP connection; a datagram may be for a connected socket of the host.
    if !transport.flags.is_opening() {
        let connection = Connection {
            protocol: ip.protocol,
            remote: ip.source,
            remote_port_be: transport.source_port_be,
            local: ip.destination,
            local_port_be: transport.destination_port_be,
        };
        if lookups.socket_owns(&connection) {
            return Choice::none(Fate::PASS);
        }
    }
    if service.flags & service_flag::ALLOW_LIST != 0 && !lookups.is_allowed(service.index, &key.client) {
        return Choice::none(dropped(lookups, DropReason::NotAllowed, Direction::Request));
    }
    let admission = guard::admit(lookups, segment);
    if let Admission::Refused = admission {
        return Choice::none(Fate::refuse(DropReason::NoFlow));
    }
    let Some(id) = guard::select(lookups, service, key, avoided, admission) else {
        if let At::Xdp = at
            && segment.is_udp()
        {
            return Choice::none(Fate::PASS);
        }
        lookups.count_no_backend(service.index);
        return Choice::none(Fate::refuse(DropReason::NoBackend));
    };
    let backend = lookups.backend(id);
    let is_remote = backend.is_some_and(|backend| !backend.is_local());
    let is_direct = is_remote && matches!(Mode::from_byte(service.mode), Mode::Dsr);
    let events = admission.events(is_direct);
    if admission.creates_flow() {
        return record_flow(packet, lookups, key, service.index, id, events, transport.sequence);
    }
    // A packet that XDP passes to TC comes through here again, and must be counted once.
    if segment.may_open() && (is_remote || matches!(at, At::Tc)) {
        lookups.count_unremembered(service.index);
    }
    forward_to(lookups, id, events)
}

/// Stores a new flow.
#[inline(always)]
pub(super) fn record_flow<'a, P: Packet, L: Lookups>(
    packet: &P,
    lookups: &'a L,
    key: &FlowKey,
    service_index: u32,
    id: u32,
    events: u32,
    sequence: u16,
) -> Choice<'a> {
    let Some((client_mac, node_mac)) = macs(packet) else {
        return Choice::none(Fate::PASS);
    };
    let now_ns = lookups.precise_ns();
    let flow = Flow {
        seen_ns: now_ns,
        opened_ns: now_ns,
        // The cast loses nothing: backend ids have 16 bits.
        backend: id as u16,
        sequence,
        events,
        uplink: packet.ifindex(),
        client_mac,
        node_mac,
    };
    let (id, events) = match lookups.flows().open(key, &flow) {
        Opened::Added => {
            lookups.count_opened(service_index, id);
            (id, events)
        }
        Opened::Exists => match flow_ref::find(lookups.flows(), key) {
            Some(other) => (other.value().backend_id(), other.value().events),
            None => return Choice::none(dropped(lookups, DropReason::Raced, Direction::Request)),
        },
        Opened::Refused => return Choice::none(dropped(lookups, DropReason::TableFull, Direction::Request)),
    };
    forward_to(lookups, id, events)
}

/// The choice of the backend with this id.
#[inline(always)]
fn forward_to<L: Lookups>(lookups: &L, id: u32, events: u32) -> Choice<'_> {
    match lookups.backend(id) {
        Some(backend) => Choice::of(id, backend, events),
        None => Choice::none(dropped(lookups, DropReason::UnknownBackend, Direction::Request)),
    }
}

/// Whether the task's node answers the client of a flow with these events directly.
#[inline(always)]
pub(super) const fn is_dsr(events: u32) -> bool {
    events & flow_event::DSR != 0
}
