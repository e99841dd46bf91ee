//! Connections that this node began itself, from a port that is published: a container's, which the
//! host translates to the node's address.
//!
//! What comes back for such a connection looks like a client's packet for the published port, and
//! no socket of the host owns it. So the uplink's egress hook remembers it as a flow
//! ([`flow_event::OUTGOING`]) in the table that the ingress hooks look into anyway: a reply belongs
//! to who began, and nothing else costs more than before. A client's flow of the same name that is
//! there already stays.

use super::flow_ref::{self, FlowRef};
use crate::abi::{Direction, Flow, FlowKey, Mac, ServiceKey, VipId, flow_event};
use crate::conntrack;
use crate::lookups::{FlowTable, Lookups};
use crate::packet::Packet;
use crate::parse::Segment;

/// TC on the egress of an uplink: a packet that this node forwards.
#[inline(always)]
pub fn forwarded<P: Packet, L: Lookups>(packet: &P, lookups: &L) {
    if lookups.config().is_none() {
        return;
    }
    let Some(segment) = Segment::parse(packet, 0) else {
        return;
    };
    let port_be = segment.transport.source_port_be;
    let service = ServiceKey { port_be, protocol: segment.ip.protocol, reserved: 0 };
    if lookups.service(&service).is_some()
        && let Some(address_index) = lookups.address_index(&segment.ip.source)
    {
        remember(packet, lookups, &segment, &key(&segment, address_index));
    }
}

/// The flow that the packet's answers will name.
#[inline(always)]
fn key(segment: &Segment, address_index: u32) -> FlowKey {
    FlowKey {
        client: segment.ip.destination,
        client_port_be: segment.transport.destination_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, segment.ip.protocol, segment.transport.source_port_be.get()),
    }
}

/// Notes a packet of a connection of this node's, or the connection.
#[inline(always)]
fn remember<P: Packet, L: Lookups>(packet: &P, lookups: &L, segment: &Segment, key: &FlowKey) {
    let (flags, now_ns) = (segment.transport.flags, lookups.now_ns());
    if let Some(flow) = flow_ref::find(lookups.flows(), key) {
        let events = flow.value().events;
        if !conntrack::is_outgoing(events) {
            return;
        }
        if !(flags.is_opening() && conntrack::is_closed(events)) {
            flow_ref::record_segment(
                lookups.flows(),
                key,
                &flow,
                Direction::Reply,
                &segment.transport,
                now_ns,
            );
            return;
        }
        lookups.flows().forget(key);
    }
    // A connection that is older than mesh, or was forgotten, goes on with any packet; one that is
    // ending needs no memory.
    if !(segment.is_udp() || flags.is_opening() || flags.is_plain()) {
        return;
    }
    let flow = Flow {
        seen_ns: now_ns,
        opened_ns: now_ns,
        backend: 0,
        sequence: segment.transport.acknowledged,
        events: flow_event::OUTGOING,
        uplink: packet.ifindex(),
        client_mac: Mac::NONE,
        node_mac: Mac::NONE,
    };
    // In a table without room for it the connection is as badly off as it would be without this.
    let _opened = lookups.flows().open(key, &flow);
}

/// Whether a packet from outside belongs to a connection of this node's, which the host stack
/// knows. `false` if that has ended and the packet begins a client's flow of the same name.
#[inline(always)]
pub(super) fn owns<L: Lookups>(
    lookups: &L,
    segment: &Segment,
    key: &FlowKey,
    flow: &FlowRef<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
) -> bool {
    if segment.transport.flags.is_opening() && conntrack::is_closed(flow.value().events) {
        lookups.flows().forget(key);
        return false;
    }
    let now_ns = lookups.now_ns();
    flow_ref::record_segment(lookups.flows(), key, flow, Direction::Request, &segment.transport, now_ns);
    true
}
