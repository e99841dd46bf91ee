//! The ingress role for replies: forwards a reply out of the tunnel to the client.

use super::flow_ref::{self, FlowRef};
use super::{At, dropped, guard, packet_count};
use crate::abi::{Direction, DropReason, Flow, FlowKey, Timed, VipId, flow_event};
use crate::lookups::{FlowEntry, FlowTable, Lookups};
use crate::packet::Packet;
use crate::parse::Segment;
use crate::parse::vxlan::{OVERHEAD, Vni};
use crate::rewrite;
use crate::verdict::Fate;

/// Handles a reply that still has its outer headers. XDP passes what it can't send out of the same
/// uplink to TC, and TC passes what it can't decapsulate to the VXLAN device.
#[inline(always)]
pub(super) fn forward_outer<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, vni: Vni, at: At) -> Fate {
    let Some(segment) = Segment::parse(packet, OVERHEAD) else {
        return Fate::PASS;
    };
    let Some(key) = key(lookups, &segment) else {
        return dropped(lookups, DropReason::Malformed, Direction::Reply);
    };
    let Some(flow) = flow_ref::find_client_flow(lookups, &key) else {
        return guard::forward_reply(packet, lookups, &segment, vni, at, true);
    };
    if is_stale(&segment, flow.value().backend_id(), vni.sender()) {
        return dropped(lookups, DropReason::NoFlow, Direction::Reply);
    }
    let is_for_next = match at {
        At::Xdp => flow.value().uplink != packet.ifindex(),
        At::Tc => is_for_device(packet, &flow),
    };
    if is_for_next || packet.pull_outer().is_none() {
        return Fate::PASS;
    }
    account(packet, lookups, &segment, &key, &flow);
    keep_load(lookups, flow.value().backend_id(), vni);
    match rewrite::set_macs(packet, flow.value().client_mac, flow.value().node_mac) {
        Some(()) if matches!(at, At::Xdp) => Fate::BOUNCE,
        Some(()) => Fate::emit(flow.value().uplink),
        None => dropped(lookups, DropReason::Malformed, Direction::Reply),
    }
}

/// Whether the VXLAN device must decapsulate this packet: because only it can, or because it may
/// have an earlier packet of the flow. Such a packet waits in the device for a moment and must not
/// be overtaken.
#[inline(always)]
fn is_for_device<P: Packet, E: FlowEntry<Flow>>(packet: &P, flow: &FlowRef<Flow, E>) -> bool {
    let is_marked = flow.value().events & flow_event::SEGMENTED != 0;
    let is_segmented = packet.segment_size() != 0;
    if is_segmented && !is_marked {
        flow.entry.add_events(flow_event::SEGMENTED);
    }
    is_segmented || is_marked
}

/// Handles a reply that the VXLAN device has decapsulated, in TC.
#[inline(always)]
pub(super) fn forward<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    segment: &Segment,
    vni: Vni,
) -> Fate {
    let Some(key) = key(lookups, segment) else {
        return dropped(lookups, DropReason::Malformed, Direction::Reply);
    };
    let Some(flow) = flow_ref::find_client_flow(lookups, &key) else {
        return guard::forward_reply(packet, lookups, segment, vni, At::Tc, false);
    };
    if is_stale(segment, flow.value().backend_id(), vni.sender()) {
        return dropped(lookups, DropReason::NoFlow, Direction::Reply);
    }
    account(packet, lookups, segment, &key, &flow);
    keep_load(lookups, flow.value().backend_id(), vni);
    match rewrite::set_macs(packet, flow.value().client_mac, flow.value().node_mac) {
        Some(()) => Fate::emit(flow.value().uplink),
        None => dropped(lookups, DropReason::Malformed, Direction::Reply),
    }
}

/// Whether the reply comes from a backend, `sender` (0: not given), that the connection has left:
/// the client's retransmitted SYN went to another backend. The client would acknowledge the first
/// backend's late SYN-ACK, and the acknowledgement would go to the other, which knows nothing of
/// it. A datagram is never stale: it answers a request, whoever sends it.
#[inline(always)]
fn is_stale(segment: &Segment, backend: u32, sender: u32) -> bool {
    !segment.is_udp() && sender != 0 && sender != backend
}

/// Stores the load that the reply carries, if any.
#[inline(always)]
fn keep_load<L: Lookups>(lookups: &L, backend: u32, vni: Vni) {
    if vni.load() != 0 {
        lookups.keep_load(backend, vni.load());
    }
}

/// Records and counts a reply of a task of this node, the backend `sender`; `false` if the
/// connection has left that backend.
#[inline(always)]
pub(super) fn account_local<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    segment: &Segment,
    key: &FlowKey,
    sender: u32,
) -> bool {
    let Some(flow) = flow_ref::find_client_flow(lookups, key) else {
        return true;
    };
    if is_stale(segment, flow.value().backend_id(), sender) {
        return false;
    }
    account(packet, lookups, segment, key, &flow);
    true
}

/// Records and counts a packet if it is a reply of the flow with this key, and the flow's backend
/// is `sender`; `false` if it isn't.
#[inline(always)]
pub(super) fn account_of<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    segment: &Segment,
    key: &FlowKey,
    sender: u32,
) -> bool {
    match flow_ref::find_client_flow(lookups, key) {
        Some(flow) if flow.value().backend_id() == sender => {
            account(packet, lookups, segment, key, &flow);
            true
        }
        _ => false,
    }
}

/// Records the reply in its flow, and counts it.
#[inline(always)]
fn account<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    segment: &Segment,
    key: &FlowKey,
    flow: &FlowRef<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
) {
    let id = flow.value().backend_id();
    let transition = flow_ref::record_segment(
        lookups.flows(),
        key,
        flow,
        Direction::Reply,
        &segment.transport,
        lookups.now_ns(),
    );
    if transition.closes {
        lookups.count_closed(id);
    }
    if transition.revives {
        lookups.count_revived(id);
    }
    if transition.answers {
        lookups.count_answered(id);
    }
    if transition.refuses {
        lookups.count_refused(id);
    }
    if let Some(backend) = lookups.backend(id) {
        if transition.closes {
            flow_ref::record_duration(lookups, Timed::Flow, backend.service_index, &flow.entry);
        } else if transition.answers && flow.value().events & flow_event::UNPROVEN == 0 {
            flow_ref::record_duration(lookups, Timed::Connect, backend.service_index, &flow.entry);
        }
        lookups.count_traffic(backend.service_index, id, Direction::Reply, packet_count(packet, segment));
    }
}

/// The key of the flow that a reply belongs to; its source is already the published port.
#[inline(always)]
fn key<L: Lookups>(lookups: &L, segment: &Segment) -> Option<FlowKey> {
    let address_index = lookups.address_index(&segment.ip.source)?;
    Some(FlowKey {
        client: segment.ip.destination,
        client_port_be: segment.transport.destination_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, segment.ip.protocol, segment.transport.source_port_be.get()),
    })
}
