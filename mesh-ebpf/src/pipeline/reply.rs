//! The ingress role on the way back: a reply out of the tunnel goes to the client.

use super::{drop, load, track};
use crate::abi::{Direction, DropReason, Flow, FlowKey, Timed, VipId};
use crate::lookups::{FlowTable, Lookups};
use crate::packet::{Packet, Resizable};
use crate::parse::Segment;
use crate::parse::vxlan::{OVERHEAD, Vni};
use crate::rewrite;
use crate::verdict::Fate;

/// XDP: the packet still has its outer headers. What does not leave by the same uplink is left to TC.
#[inline(always)]
pub(super) fn forward_xdp<P: Resizable, L: Lookups>(packet: &mut P, lookups: &L, vni: Vni) -> Fate {
    let Some(segment) = Segment::parse(packet, OVERHEAD) else {
        return Fate::PASS;
    };
    let Some(key) = key(lookups, &segment) else {
        return drop(lookups, DropReason::Malformed, Direction::Reply);
    };
    let Some(flow) = track::find(lookups.flows(), &key) else {
        return drop(lookups, DropReason::NoFlow, Direction::Reply);
    };
    if flow.value().uplink != packet.ifindex() {
        return Fate::PASS;
    }
    if packet.pull_outer().is_none() {
        return drop(lookups, DropReason::Resize, Direction::Reply);
    }
    account(packet, lookups, &segment, &key, &flow);
    keep_load(lookups, flow.value().backend, vni);
    match rewrite::set_macs(packet, flow.value().client_mac, flow.value().node_mac) {
        Some(()) => Fate::BOUNCE,
        None => drop(lookups, DropReason::Resize, Direction::Reply),
    }
}

/// TC on the VXLAN device, which has taken the outer headers off.
#[inline(always)]
pub(super) fn forward<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    segment: &Segment,
    vni: Vni,
) -> Fate {
    let Some(key) = key(lookups, segment) else {
        return drop(lookups, DropReason::Malformed, Direction::Reply);
    };
    let Some(flow) = track::find(lookups.flows(), &key) else {
        return drop(lookups, DropReason::NoFlow, Direction::Reply);
    };
    account(packet, lookups, segment, &key, &flow);
    keep_load(lookups, flow.value().backend, vni);
    match rewrite::set_macs(packet, flow.value().client_mac, flow.value().node_mac) {
        Some(()) => Fate::emit(flow.value().uplink),
        None => drop(lookups, DropReason::Malformed, Direction::Reply),
    }
}

/// Keeps what the task's node tells of the backend's load, if anything.
#[inline(always)]
fn keep_load<L: Lookups>(lookups: &L, backend: u32, vni: Vni) {
    if vni.load() != 0 {
        lookups.keep_load(backend, vni.load());
    }
}

/// The reply of a task of this node: notes and counts it.
#[inline(always)]
pub(super) fn account_local<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    segment: &Segment,
    key: &FlowKey,
) {
    if let Some(flow) = track::find(lookups.flows(), key) {
        account(packet, lookups, segment, key, &flow);
    }
}

/// Notes the reply on its flow, and counts it.
#[inline(always)]
fn account<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    segment: &Segment,
    key: &FlowKey,
    flow: &track::Tracked<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
) {
    let id = flow.value().backend;
    let noted =
        track::note(lookups.flows(), key, flow, Direction::Reply, &segment.transport, lookups.now_ns());
    if noted.closes {
        lookups.count_closed(id);
    }
    if noted.answers {
        lookups.count_answered(id);
    }
    if noted.refuses {
        lookups.count_refused(id);
    }
    if let Some(backend) = lookups.backend(id) {
        if noted.closes {
            track::time(lookups, Timed::Flow, backend.service_index, &flow.entry);
        } else if noted.answers {
            track::time(lookups, Timed::Connect, backend.service_index, &flow.entry);
        }
        lookups.count_traffic(backend.service_index, id, Direction::Reply, load(packet, segment));
    }
}

/// The flow that a reply, its source already the published port, belongs to.
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
