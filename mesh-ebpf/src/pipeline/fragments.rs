//! Fragments: the first one is forwarded like a whole packet, and its ports are stored for the
//! others, which follow it.
//!
//! A later fragment creates no flow, adds no event, and is never answered. If the first fragment
//! was not seen before it, it is left to the host stack. At the task's node, requests need no
//! ports: the tunnel names the backend.

use super::flow_ref::{self, FlowRef};
use super::{
    Origin, answer_refusal, answer_refused_reply, dropped, ingress, is_tunnel, isolated, macs, owner, reply,
};
use crate::abi::{
    Backend, Config, Direction, DropReason, Edge, Flow, FlowKey, FragmentPorts, NatKey, VipId, flow_event,
};
use crate::lookups::{FlowTable, Lookups, PacketCount};
use crate::packet::Packet;
use crate::parse::fragment::{self, FragmentHeader};
use crate::parse::vxlan::Vni;
use crate::rewrite::{self, Side};
use crate::verdict::Fate;

/// Tail call of [`super::uplink`]: a fragment that came in by an uplink.
#[inline(always)]
pub fn uplink_fragment<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    fragment: &mut FragmentHeader,
) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    if !fragment::parse(packet, fragment) {
        return Fate::PASS;
    }
    if !fragment.is_first {
        return later_request(packet, lookups, config, fragment);
    }
    let Some(segment) = fragment.segment(packet) else {
        return Fate::PASS;
    };
    if is_tunnel(config, &segment) {
        return Fate::tail_call(Edge::Decapsulate);
    }
    if lookups.address_index(&segment.ip.destination).is_none() {
        return Fate::PASS;
    }
    lookups.keep_fragment_ports(&fragment.key, &fragment::ports(&segment, lookups.now_ns()));
    let fate = ingress::forward(packet, lookups, config, &segment).by_device();
    answer_refusal(packet, lookups, &segment, fate, [0; 4])
}

/// Tail call of [`super::tunnel`]: a fragment that came out of the tunnel.
#[inline(always)]
pub fn tunnel_fragment<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    origin: Origin,
    fragment: &mut FragmentHeader,
) -> Fate {
    let direction = if origin.vni.is_reply() { Direction::Reply } else { Direction::Request };
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    if !fragment::parse(packet, fragment) {
        return dropped(lookups, DropReason::Malformed, direction);
    }
    let id = origin.vni.backend();
    if !fragment.is_first {
        if origin.vni.is_reply() {
            return later_reply(packet, lookups, fragment);
        }
        return match lookups.backend(id).filter(|backend| backend.is_alive() && backend.is_local()) {
            Some(backend) if !owner::is_allowed(lookups, backend, &fragment.header().source) => {
                dropped(lookups, DropReason::NotAllowed, direction)
            }
            Some(backend) => deliver(packet, lookups, fragment, backend),
            None => dropped(lookups, DropReason::UnknownBackend, direction),
        };
    }
    let Some(segment) = fragment.segment(packet) else {
        return dropped(lookups, DropReason::Malformed, direction);
    };
    if origin.vni.is_reply() {
        lookups.keep_fragment_ports(&fragment.key, &fragment::ports(&segment, lookups.now_ns()));
        return reply::forward(packet, lookups, &segment, origin.vni);
    }
    let source = owner::Arrival::Node { peer: origin.peer, is_dsr: origin.vni.is_dsr() };
    let fate = owner::deliver(packet, lookups, config, &segment, id, &source);
    answer_refusal(packet, lookups, &segment, fate, origin.peer)
}

/// Tail call of [`super::task`]: a fragment that a task sent.
#[inline(always)]
pub fn task_fragment<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    fragment: &mut FragmentHeader,
) -> Fate {
    let fate = from_task(packet, lookups, fragment);
    isolated(packet, lookups, fate)
}

/// Forwards a task's fragment along its flow; [`Fate::PASS`] if there is none.
#[inline(always)]
fn from_task<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, fragment: &mut FragmentHeader) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    if !fragment::parse(packet, fragment) {
        return Fate::PASS;
    }
    if !fragment.is_first {
        return later_answer(packet, lookups, config, fragment);
    }
    let Some(segment) = fragment.segment(packet) else {
        return Fate::PASS;
    };
    lookups.keep_fragment_ports(&fragment.key, &fragment::ports(&segment, lookups.now_ns()));
    let destination = owner::answer(packet, lookups, config, &segment);
    answer_refused_reply(lookups, destination.by_device())
}

/// The ports that the first fragment carried, if it was seen.
#[inline(always)]
pub(super) fn ports<L: Lookups>(lookups: &L, fragment: &FragmentHeader) -> Option<FragmentPorts> {
    lookups.fragment_ports(&fragment.key).filter(|ports| ports.is_fresh(lookups.now_ns()))
}

/// Forwards a later fragment of a client's packet.
#[inline(always)]
fn later_request<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    fragment: &FragmentHeader,
) -> Fate {
    let Some(ports) = ports(lookups, fragment) else {
        return Fate::PASS;
    };
    let ip = &fragment.header();
    let Some(address_index) = lookups.address_index(&ip.destination) else {
        return Fate::PASS;
    };
    let key = FlowKey {
        client: ip.source,
        client_port_be: ports.source_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, ip.protocol, ports.destination_port_be.get()),
    };
    let Some(flow) = flow_ref::find_client_flow(lookups, &key) else {
        return Fate::PASS;
    };
    let id = flow.value().backend_id();
    let Some(backend) = lookups.backend(id).filter(|backend| backend.is_alive()) else {
        return dropped(lookups, DropReason::BackendGone, Direction::Request);
    };
    let fate = if backend.is_local() {
        deliver(packet, lookups, fragment, backend)
    } else if ip.dont_fragment && ip.total_len > config.tunnel_mtu {
        // The sender got an ICMP error for the first fragment.
        dropped(lookups, DropReason::TooBig, Direction::Request)
    } else {
        match lookups.node(backend.node).filter(|node| !node.address.is_none()) {
            Some(node) => {
                let is_dsr = flow.value().events & flow_event::DSR != 0;
                Fate::via_device(node.address.v4_octets(), Vni::request(id, is_dsr))
            }
            None => dropped(lookups, DropReason::UnknownNode, Direction::Request),
        }
    };
    if fate.is_forwarded() {
        count(lookups, id, backend, Direction::Request, fragment);
    }
    fate
}

/// Translates a later fragment of a client's packet and delivers it to a task of this node.
#[inline(always)]
fn deliver<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    fragment: &FragmentHeader,
    backend: &Backend,
) -> Fate {
    let ip = &fragment.header();
    if ip.ttl <= 1 {
        return dropped(lookups, DropReason::TtlExpired, Direction::Request);
    }
    let address = if ip.is_v6 { backend.task_address6 } else { backend.task_address };
    let Some((_, node_mac)) = macs(packet) else {
        return dropped(lookups, DropReason::Malformed, Direction::Request);
    };
    let is_changed = rewrite::translate_address(packet, ip, Side::Destination, &address).is_some()
        && rewrite::set_macs(packet, backend.task_mac, node_mac).is_some();
    if !is_changed {
        return dropped(lookups, DropReason::Malformed, Direction::Request);
    }
    Fate::deliver(backend.ifindex)
}

/// Forwards a later fragment of a task's packet, which came out of the tunnel, to the client.
#[inline(always)]
fn later_reply<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, fragment: &FragmentHeader) -> Fate {
    let ip = &fragment.header();
    let Some(address_index) = lookups.address_index(&ip.source) else {
        return dropped(lookups, DropReason::Malformed, Direction::Reply);
    };
    let Some(ports) = ports(lookups, fragment) else {
        return dropped(lookups, DropReason::Fragment, Direction::Reply);
    };
    let key = FlowKey {
        client: ip.destination,
        client_port_be: ports.destination_port_be,
        reserved: [0; 2],
        vip: VipId::new(address_index, ip.protocol, ports.source_port_be.get()),
    };
    let Some(flow) = flow_ref::find_client_flow(lookups, &key) else {
        return dropped(lookups, DropReason::NoFlow, Direction::Reply);
    };
    account(lookups, &flow, fragment);
    match rewrite::set_macs(packet, flow.value().client_mac, flow.value().node_mac) {
        Some(()) => Fate::emit(flow.value().uplink),
        None => dropped(lookups, DropReason::Malformed, Direction::Reply),
    }
}

/// Translates a later fragment of a packet that a task of this node sent, and sends it back.
#[inline(always)]
fn later_answer<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    fragment: &FragmentHeader,
) -> Fate {
    let Some(ports) = ports(lookups, fragment) else {
        return Fate::PASS;
    };
    let ip = &fragment.header();
    let key = NatKey {
        client: ip.destination,
        client_port_be: ports.destination_port_be,
        task_port_be: ports.source_port_be,
        task: NatKey::task(ip.protocol, packet.ifindex()),
    };
    let Some(found) = flow_ref::find(lookups.nats(), &key) else {
        return Fate::PASS;
    };
    if ip.ttl <= 1 {
        return dropped(lookups, DropReason::TtlExpired, Direction::Reply);
    }
    let nat = &found.value();
    if rewrite::translate_address(packet, ip, Side::Source, &nat.vip).is_none() {
        return dropped(lookups, DropReason::Malformed, Direction::Reply);
    }
    if nat.via.is_none() {
        if let Some(address_index) = lookups.address_index(&nat.vip) {
            let key = FlowKey {
                client: ip.destination,
                client_port_be: nat.client_port_be,
                reserved: [0; 2],
                vip: VipId::new(address_index, ip.protocol, nat.vip_port_be.get()),
            };
            if let Some(flow) = flow_ref::find_client_flow(lookups, &key) {
                account(lookups, &flow, fragment);
            }
        }
        if rewrite::set_macs(packet, nat.client_mac, nat.node_mac).is_none() {
            return dropped(lookups, DropReason::Malformed, Direction::Reply);
        }
    }
    owner::way_back(lookups, config, nat).by_device()
}

#[inline(always)]
fn account<L: Lookups>(
    lookups: &L,
    flow: &FlowRef<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
    fragment: &FragmentHeader,
) {
    let id = flow.value().backend_id();
    if let Some(backend) = lookups.backend(id) {
        count(lookups, id, backend, Direction::Reply, fragment);
    }
}

#[inline(always)]
pub(super) fn count<L: Lookups>(
    lookups: &L,
    id: u32,
    backend: &Backend,
    direction: Direction,
    fragment: &FragmentHeader,
) {
    let packet = PacketCount { packets: 1, bytes: fragment.total_len };
    lookups.count_traffic(backend.service_index, id, direction, packet);
}
