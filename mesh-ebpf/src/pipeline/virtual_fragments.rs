//! Fragments of datagrams to virtual IPs, and of what their backends send: as for published ports
//! ([`super::fragments`]), the first fragment goes the way of a whole packet, and its ports are
//! stored for the others, which find its flow by them.
//!
//! A later fragment creates no flow and is never answered. One whose first fragment was not seen is
//! dropped on its way to a virtual IP. From a backend, it may belong to a datagram by address, so
//! it goes on unchanged.

use super::fragments::{count, ports};
use super::network::{Arrival, node_address};
use super::virtual_ip::{Restored, client_key, forward, own_reply_key, reply_key, restore, turn_around};
use super::{Origin, answer_refusal, dropped, flow_ref};
use crate::abi::{Backend, Direction, DropReason, EndpointKey, FlowKey, FragmentPorts, Link, MESH_MAC};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::fragment::{self, FragmentHeader};
use crate::parse::vxlan::Vni;
use crate::parse::{eth, ipv4};
use crate::rewrite::{self, Side};
use crate::verdict::Fate;

/// Tail call of [`super::virtual_ip()`]: a task's fragment to a virtual IP.
#[inline(always)]
pub fn virtual_fragment<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    fragment: &mut FragmentHeader,
) -> Fate {
    let (Some(config), Some(link)) = (lookups.config(), lookups.link(packet.ifindex())) else {
        return dropped(lookups, DropReason::UnknownLink, Direction::Request);
    };
    if !fragment::parse(packet, fragment) || fragment.is_v6 {
        return dropped(lookups, DropReason::Fragment, Direction::Request);
    }
    if !fragment.is_first {
        return later_request(packet, lookups, link, fragment);
    }
    let Some(segment) = fragment.segment(packet) else {
        return dropped(lookups, DropReason::Fragment, Direction::Request);
    };
    lookups.keep_fragment_ports(&fragment.key, &fragment::ports(&segment, lookups.now_ns()));
    let fate = forward(packet, lookups, config, link, &segment).by_device();
    answer_refusal(packet, lookups, &segment, fate, [0; 4])
}

/// Forwards a later fragment to the backend of its flow.
#[inline(always)]
fn later_request<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    link: &Link,
    fragment: &FragmentHeader,
) -> Fate {
    let drop = |reason| dropped(lookups, reason, Direction::Request);
    let Some(ports) = ports(lookups, fragment) else {
        return drop(DropReason::Fragment);
    };
    if fragment.ttl <= 1 {
        return drop(DropReason::TtlExpired);
    }
    let virtual_ip = fragment.key.destination.v4_octets();
    let protocol = fragment.key.protocol;
    let key = client_key(link, virtual_ip, (ports.source_port_be, ports.destination_port_be), protocol);
    let Some(flow) = flow_ref::find_client_flow(lookups, &key) else {
        let key =
            own_reply_key(link, virtual_ip, (ports.source_port_be, ports.destination_port_be), protocol);
        let is_own = link.backend != 0 && flow_ref::find_client_flow(lookups, &key).is_some();
        return if is_own { to_itself(packet, lookups, link) } else { drop(DropReason::NoFlow) };
    };
    let id = flow.value().backend_id();
    let Some(backend) = lookups.backend(id).filter(|backend| backend.is_alive()) else {
        return drop(DropReason::BackendGone);
    };
    let fate = to_backend(packet, lookups, link, fragment, backend);
    if fate.is_forwarded() {
        count(lookups, id, backend, Direction::Request, fragment);
    }
    fate
}

/// Rewrites a later fragment's destination and sends it to the backend.
#[inline(always)]
fn to_backend<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    link: &Link,
    fragment: &FragmentHeader,
    backend: &Backend,
) -> Fate {
    let drop = |reason| dropped(lookups, reason, Direction::Request);
    let member = backend.task_address;
    let Some(endpoint) = lookups.endpoint(&EndpointKey::new(link.network, member.v4_octets())) else {
        return drop(DropReason::UnknownBackend);
    };
    if endpoint.is_connected() && endpoint.ifindex == packet.ifindex() {
        return to_itself(packet, lookups, link);
    }
    let fate = if endpoint.is_connected() {
        Fate::deliver(endpoint.ifindex)
    } else if endpoint.is_local() {
        return drop(DropReason::UnknownBackend);
    } else {
        match node_address(lookups, endpoint) {
            Some(peer) => Fate::via_device(peer, Vni::network(link.network)),
            None => return drop(DropReason::UnknownNode),
        }
    };
    let is_written = rewrite::translate_address(packet, &fragment.header(), Side::Destination, &member)
        .is_some()
        && (!endpoint.is_connected() || rewrite::set_macs(packet, endpoint.mac, MESH_MAC).is_some());
    if is_written { fate } else { drop(DropReason::Malformed) }
}

/// Delivers a later fragment of a task's datagram to itself.
#[inline(always)]
fn to_itself<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, link: &Link) -> Fate {
    match turn_around(packet, link) {
        Some(()) => Fate::deliver(packet.ifindex()),
        None => dropped(lookups, DropReason::Malformed, Direction::Request),
    }
}

/// Tail call of [`super::virtual_reply`]: a fragment from a backend of a virtual IP to another task
/// of this node.
#[inline(always)]
pub fn virtual_reply_fragment<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    fragment: &mut FragmentHeader,
) -> Fate {
    const DESTINATION: usize = eth::LEN + ipv4::DESTINATION;
    let (Some(link), Some(octets)) = (lookups.link(packet.ifindex()), packet.read_bytes::<4>(DESTINATION))
    else {
        return dropped(lookups, DropReason::UnknownLink, Direction::Reply);
    };
    let Some(endpoint) = lookups.endpoint(&EndpointKey::new(link.network, octets)) else {
        return dropped(lookups, DropReason::UnknownEndpoint, Direction::Reply);
    };
    let restored = restore_fragment(packet, lookups, fragment, (link.network, link.backend));
    restored.pass_on(packet, lookups, endpoint)
}

/// Tail call of [`super::virtual_tunnel`]: a fragment from the VXLAN device.
#[inline(always)]
pub fn virtual_tunnel_fragment<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    origin: Origin,
    fragment: &mut FragmentHeader,
) -> Fate {
    let Some(sender) = lookups.peer(&origin.address()) else {
        return dropped(lookups, DropReason::UnknownPeer, Direction::Reply);
    };
    let arrival = Arrival::judge(packet, lookups, 0, sender, origin.vni.network_number());
    if let Some(reason) = arrival.refused {
        return dropped(lookups, reason, Direction::Reply);
    }
    let restored = restore_fragment(packet, lookups, fragment, (arrival.network, arrival.backend));
    if let Some(reason) = restored.refused {
        return dropped(lookups, reason, Direction::Reply);
    }
    arrival.deliver(packet, lookups)
}

/// If the fragment from this backend belongs to a reply to this node's task, makes the virtual IP
/// its source.
#[inline(always)]
fn restore_fragment<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    fragment: &mut FragmentHeader,
    (network, id): (u32, u32),
) -> Restored {
    if !fragment::parse(packet, fragment) || fragment.is_v6 {
        return Restored::BY_ADDRESS;
    }
    if fragment.is_first {
        let Some(segment) = fragment.segment(packet) else {
            return Restored::BY_ADDRESS;
        };
        lookups.keep_fragment_ports(&fragment.key, &fragment::ports(&segment, lookups.now_ns()));
        return restore(packet, lookups, &segment, (network, id));
    }
    let Some(backend) = lookups.backend(id).filter(|backend| backend.network == network) else {
        return Restored::BY_ADDRESS;
    };
    let Some(ports) = ports(lookups, fragment).filter(|_| fragment.ttl > 1) else {
        return Restored::BY_ADDRESS;
    };
    match flow_ref::find_client_flow(lookups, &later_reply_key(fragment, backend, &ports)) {
        Some(flow) if flow.value().backend_id() == id => {}
        _ => return Restored::BY_ADDRESS,
    }
    count(lookups, id, backend, Direction::Reply, fragment);
    let virtual_ip = &backend.task_address6;
    let is_written =
        rewrite::translate_address(packet, &fragment.header(), Side::Source, virtual_ip).is_some();
    Restored::reply(is_written)
}

#[inline(always)]
fn later_reply_key(fragment: &FragmentHeader, backend: &Backend, ports: &FragmentPorts) -> FlowKey {
    reply_key(
        backend,
        fragment.key.destination.v4_octets(),
        (ports.source_port_be, ports.destination_port_be),
        fragment.key.protocol,
    )
}
