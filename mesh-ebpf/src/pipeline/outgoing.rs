//! Connections that this node began itself from a published port: a container's, whose address the
//! host translates to the node's.
//!
//! Replies to such a connection look like a client's packets for the published port, and no socket
//! of the host owns it. So the uplink's egress hook stores it as a flow ([`flow_event::OUTGOING`])
//! in the table that the ingress hooks search anyway: they pass its replies to the host stack, and
//! nothing else gets slower. A client's flow with the same key that exists already is kept.

use super::flow_ref::{self, FlowRef};
use crate::abi::{Direction, Flow, FlowKey, Mac, ServiceKey, VipId, flow_event};
use crate::conntrack;
use crate::lookups::{FlowTable, Lookups};
use crate::packet::Packet;
use crate::parse::Segment;

/// Entry of TC egress on an uplink for a packet that this node forwards: records its connection.
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

/// The key that the packet's replies will have.
#[inline(always)]
fn key(segment: &Segment, address_index: u32) -> FlowKey {
    FlowKey {
        client: segment.ip.destination,
        client_port_be: segment.transport.destination_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, segment.ip.protocol, segment.transport.source_port_be.get()),
    }
}

/// Records a packet of this node's own connection; creates the flow if there is none.
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
    // A connection that is older than mesh, or whose flow was evicted, is stored at any packet,
    // unless the packet ends it.
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
    // If the table has no room, the connection works as it would without this function.
    let _opened = lookups.flows().open(key, &flow);
}

/// Whether a packet from outside belongs to this node's own connection, which the host stack
/// handles. `false` if that connection has ended and the packet begins a client's flow with the
/// same key.
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
