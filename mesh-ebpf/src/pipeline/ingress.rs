//! The ingress role: a client's packet for a published port finds its backend.
//!
//! Nothing inside the packet changes here, and the only state is the flow's choice of a backend.

use super::guard::{self, Admission};
use super::track::{self, Tracked};
use super::{At, drop, is_too_big, load, macs, outer, outgoing, target};
use crate::abi::{
    Backend, BackendState, Config, Direction, DropReason, Flow, FlowKey, Mode, ServiceKey, Timed, VipId,
    flow_event, service_flag,
};
use crate::conntrack;
use crate::lookups::{Connection, FlowTable, Lookups, Opened};
use crate::packet::Packet;
use crate::parse::Segment;
use crate::parse::vxlan::Vni;
use crate::rewrite;
use crate::verdict::Fate;

/// What becomes of a packet. Every field is always written: see [`Fate`].
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    /// The backend that it goes to; `None`: it is not forwarded, but as [`fate`](Self::fate) says.
    backend: Option<&'a Backend>,
    id: u32,
    /// The task's node is to answer the client directly.
    is_dsr: bool,
    fate: Fate,
}

impl<'a> Choice<'a> {
    /// The packet goes to this backend, as part of a flow with these events.
    #[inline(always)]
    const fn of(id: u32, backend: &'a Backend, events: u32) -> Self {
        Self { backend: Some(backend), id, is_dsr: is_dsr(events), fate: Fate::PASS }
    }

    /// The packet is not forwarded.
    #[inline(always)]
    const fn none(fate: Fate) -> Self {
        Self { backend: None, id: 0, is_dsr: false, fate }
    }
}

/// XDP: sends on what is for another node, leaves the rest to TC.
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
    let outer = outer::headers(packet, config, segment, node, vni, Direction::Request);
    if packet.push_outer().is_none() || rewrite::write_outer(packet, segment.ip.total_len, &outer).is_none() {
        return drop(lookups, DropReason::Resize, Direction::Request);
    }
    lookups.count_traffic(backend.service_index, choice.id, Direction::Request, load(packet, segment));
    Fate::BOUNCE
}

/// TC: sends on through the tunnel, or delivers to a task of this node.
#[inline(always)]
pub(super) fn forward<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
) -> Fate {
    let choice = choose(packet, lookups, segment, At::Tc);
    let Some(backend) = choice.backend else {
        return choice.fate;
    };
    let fate = if backend.is_local() {
        target::deliver(packet, lookups, config, segment, choice.id, &target::Source::Uplink)
    } else {
        match lookups.node(backend.node).filter(|node| !node.address.is_none()) {
            Some(_) if is_too_big(packet, config, segment) => Fate::refuse(DropReason::TooBig),
            Some(node) => Fate::tunnel(node.address.v4_octets(), Vni::request(choice.id, choice.is_dsr)),
            None => drop(lookups, DropReason::UnknownNode, Direction::Request),
        }
    };
    if fate.is_forwarded() {
        lookups.count_traffic(backend.service_index, choice.id, Direction::Request, load(packet, segment));
    }
    fate
}

/// The backend for the packet: that of its flow, or a new one's.
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
    if let Some(flow) = track::find(lookups.flows(), &key) {
        if conntrack::is_outgoing(flow.value().events) {
            if outgoing::owns(lookups, segment, &key, &flow) {
                return Choice::none(Fate::PASS);
            }
            return open(packet, lookups, segment, &key, 0, at);
        }
        let known = go_on(packet, lookups, segment, &key, &flow);
        if !known.is_anew {
            return known.choice;
        }
        avoided = known.avoided;
    }
    open(packet, lookups, segment, &key, avoided, at)
}

/// What a packet of a flow that is known does. Every field is always written: see [`Fate`].
struct Known<'a> {
    /// Unless it begins a new flow.
    choice: Choice<'a>,
    /// It begins a new flow in the place of that one.
    is_anew: bool,
    /// If possible with another backend than this; 0: with any.
    avoided: u32,
}

impl<'a> Known<'a> {
    #[inline(always)]
    const fn goes(choice: Choice<'a>) -> Self {
        Self { choice, is_anew: false, avoided: 0 }
    }

    #[inline(always)]
    const fn anew(avoided: u32) -> Self {
        Self { choice: Choice::none(Fate::PASS), is_anew: true, avoided }
    }
}

/// A packet of a flow that is known.
#[inline(always)]
fn go_on<'a, P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &'a L,
    segment: &Segment,
    key: &FlowKey,
    flow: &Tracked<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
) -> Known<'a> {
    let id = flow.value().backend_id();
    let backend = lookups.backend(id).filter(|backend| backend.is_alive());
    let now_ns = lookups.now_ns();
    if segment.is_udp() {
        // Nobody repeats a datagram because of a RST: the next one finds another backend at once.
        if backend.is_none() || conntrack::is_closed(flow.value().events) {
            give_up(lookups, key, id, flow.value().events);
            return Known::anew(id);
        }
    } else if segment.transport.flags.is_opening() {
        let again = again(&flow.value(), backend, now_ns);
        if let Again::Retries = again {
            lookups.count_unanswered(id);
        }
        if let Again::Retries | Again::Begins = again {
            let events = flow.value().events;
            give_up(lookups, key, id, events);
            let is_to_avoid = conntrack::is_unanswered(events) || conntrack::is_refused(events);
            return Known::anew(if is_to_avoid { id } else { 0 });
        }
    }
    let Some(backend) = backend else {
        let before = track::reset(&flow.entry);
        if !conntrack::is_closed(before) {
            lookups.count_closed(id);
            if let Some(gone) = lookups.backend(id) {
                track::time(lookups, Timed::Flow, gone.service_index, &flow.entry);
            }
        }
        return Known::goes(Choice::none(Fate::refuse(DropReason::BackendGone)));
    };
    let noted = track::note(lookups.flows(), key, flow, Direction::Request, &segment.transport, now_ns);
    if noted.closes {
        lookups.count_closed(id);
        track::time(lookups, Timed::Flow, backend.service_index, &flow.entry);
    }
    if noted.revives {
        lookups.count_revived(id);
    }
    // Of a directly answered flow only: when its task answered is not seen here, so that is not timed.
    if noted.answers {
        lookups.count_answered(id);
    }
    follow(packet, lookups, segment, key, flow, now_ns);
    Known::goes(Choice::of(id, backend, flow.value().events))
}

/// Forgets a flow in whose place another begins.
#[inline(always)]
fn give_up<L: Lookups>(lookups: &L, key: &FlowKey, backend: u32, events: u32) {
    lookups.flows().forget(key);
    if !conntrack::is_closed(events) {
        lookups.count_closed(backend);
    }
}

/// Follows a client whose packets now come by another way (a gateway that failed over): replies go where they come from.
#[inline(always)]
fn follow<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    segment: &Segment,
    key: &FlowKey,
    flow: &Tracked<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
    now_ns: u64,
) {
    if !flow.is_established {
        return;
    }
    let Some((client_mac, node_mac)) = macs(packet) else {
        return;
    };
    let (known, uplink) = (&flow.value(), packet.ifindex());
    let has_moved = known.client_mac != client_mac || known.node_mac != node_mac || known.uplink != uplink;
    if has_moved && conntrack::is_clients(&segment.transport, known.sequence) {
        let moved = Flow { seen_ns: now_ns, uplink, client_mac, node_mac, ..*known };
        lookups.flows().renew(key, &flow.entry, &moved);
    }
}

/// What a SYN on a flow that is known means.
enum Again {
    /// It is the same SYN once more.
    Repeats,
    /// The flow is over, or its backend is gone: a new one begins.
    Begins,
    /// The backend did not answer the first one, and is leaving or has had its time: another may do better. Answers
    /// of tunnelled flows come by here, so "not answered" is what the client sees too; of others nobody knows, so they get more time.
    Retries,
}

#[inline(always)]
fn again(flow: &Flow, backend: Option<&Backend>, now_ns: u64) -> Again {
    let Some(backend) = backend else {
        return Again::Begins;
    };
    if conntrack::is_closed(flow.events) {
        return Again::Begins;
    }
    let is_leaving = backend.state == BackendState::Draining as u8 && !is_dsr(flow.events);
    let is_late = now_ns.saturating_sub(flow.opened_ns) >= conntrack::answer_timeout_ns(flow.events);
    if conntrack::is_unanswered(flow.events) && (is_leaving || is_late) {
        Again::Retries
    } else {
        Again::Repeats
    }
}

/// A packet that no flow is known for, or whose backend, now `avoided`, left it unanswered (0: none did).
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
        // Martians: the host stack drops and counts them.
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
    // A new TCP connection is nobody's; a datagram may be for a connected socket of the host.
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
        return Choice::none(drop(lookups, DropReason::NotAllowed, Direction::Request));
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
    if admission.is_remembered() {
        return remember(packet, lookups, key, service.index, id, events, transport.sequence);
    }
    // What XDP leaves to TC comes by here once more.
    if segment.may_open() && (is_remote || matches!(at, At::Tc)) {
        lookups.count_unremembered(service.index);
    }
    towards(lookups, id, events)
}

/// Writes a new flow down.
#[inline(always)]
fn remember<'a, P: Packet, L: Lookups>(
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
        // Backend ids have 16 bits.
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
        Opened::Exists => match track::find(lookups.flows(), key) {
            Some(other) => (other.value().backend_id(), other.value().events),
            None => return Choice::none(drop(lookups, DropReason::Raced, Direction::Request)),
        },
        Opened::Refused => return Choice::none(drop(lookups, DropReason::TableFull, Direction::Request)),
    };
    towards(lookups, id, events)
}

/// Towards the backend with this id.
#[inline(always)]
fn towards<L: Lookups>(lookups: &L, id: u32, events: u32) -> Choice<'_> {
    match lookups.backend(id) {
        Some(backend) => Choice::of(id, backend, events),
        None => Choice::none(drop(lookups, DropReason::UnknownBackend, Direction::Request)),
    }
}

/// Whether a flow with these events is answered by its task's node directly.
#[inline(always)]
const fn is_dsr(events: u32) -> bool {
    events & flow_event::DSR != 0
}

#[cfg(test)]
mod tests;
