//! ICMP errors about flows to virtual IPs, translated along the flow of the packet that they quote:
//! those of backends like replies, those of this node's tasks about replies like requests
//! ([`super::virtual_ip()`]).

use super::network::{Arrival, node_address};
use super::virtual_ip::{Restored, client_key};
use super::{Origin, dropped, errors, flow_ref};
use crate::abi::{Direction, DropReason, EndpointKey, FlowKey, MESH_MAC};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::icmp::{self, Error};
use crate::parse::vxlan::Vni;
use crate::parse::{eth, ipv4};
use crate::rewrite::{self, Side, Translation};
use crate::verdict::Fate;

/// Tail call of [`super::virtual_ip()`]: a task's ICMP error about what it got from a virtual IP.
/// It goes to the backend of the flow, for which it is about the packet that the backend sent.
#[inline(always)]
pub fn virtual_error<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, error: &mut Error) -> Fate {
    let drop = |reason| dropped(lookups, reason, Direction::Request);
    let Some(link) = lookups.link(packet.ifindex()) else {
        return drop(DropReason::UnknownLink);
    };
    if !icmp::parse(packet, error) || error.is_v6 || error.destination != error.quote.source {
        return drop(DropReason::NoFlow);
    }
    if error.ttl <= 1 {
        return drop(DropReason::TtlExpired);
    }
    let quote = &error.quote;
    let ports = (quote.destination_port_be, quote.source_port_be);
    let key = client_key(link, quote.source.v4_octets(), ports, quote.protocol);
    let Some(flow) = flow_ref::find_client_flow(lookups, &key) else {
        return drop(DropReason::NoFlow);
    };
    let id = flow.value().backend_id();
    let Some(backend) = lookups.backend(id).filter(|backend| backend.is_alive()) else {
        return drop(DropReason::BackendGone);
    };
    let member = backend.task_address;
    let Some(endpoint) = lookups.endpoint(&EndpointKey::new(link.network, member.v4_octets())) else {
        return drop(DropReason::UnknownBackend);
    };
    // The error would come back with the task's own address as the source.
    if endpoint.is_connected() && endpoint.ifindex == packet.ifindex() {
        return drop(DropReason::NoFlow);
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
    let to = Translation {
        side: Side::Destination,
        address: member,
        port_be: quote.source_port_be,
        client_port_be: quote.destination_port_be,
    };
    let is_written = rewrite::translate_error(packet, error, &to).is_some()
        && (!endpoint.is_connected() || rewrite::set_macs(packet, endpoint.mac, MESH_MAC).is_some());
    if !is_written {
        return drop(DropReason::Malformed);
    }
    errors::count(lookups, id, backend, Direction::Request, error);
    fate
}

/// Tail call of [`super::virtual_reply`]: an ICMP error for another task of this node.
#[inline(always)]
pub fn virtual_reply_error<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, error: &mut Error) -> Fate {
    const DESTINATION: usize = eth::LEN + ipv4::DESTINATION;
    let (Some(link), Some(octets)) = (lookups.link(packet.ifindex()), packet.read_bytes::<4>(DESTINATION))
    else {
        return dropped(lookups, DropReason::UnknownLink, Direction::Reply);
    };
    let Some(endpoint) = lookups.endpoint(&EndpointKey::new(link.network, octets)) else {
        return dropped(lookups, DropReason::UnknownEndpoint, Direction::Reply);
    };
    let restored = restore(packet, lookups, error, (link.network, link.backend));
    restored.pass_on(packet, lookups, endpoint)
}

/// Tail call of [`super::virtual_tunnel`]: an ICMP error from the VXLAN device.
#[inline(always)]
pub fn virtual_tunnel_error<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    origin: Origin,
    error: &mut Error,
) -> Fate {
    let Some(sender) = lookups.peer(&origin.address()) else {
        return dropped(lookups, DropReason::UnknownPeer, Direction::Reply);
    };
    let arrival = Arrival::judge(packet, lookups, 0, sender, origin.vni.network_number());
    if let Some(reason) = arrival.refused {
        return dropped(lookups, reason, Direction::Reply);
    }
    let restored = restore(packet, lookups, error, (arrival.network, arrival.backend));
    if let Some(reason) = restored.refused {
        return dropped(lookups, reason, Direction::Reply);
    }
    arrival.deliver(packet, lookups)
}

/// If the quoted packet belongs to a flow to a virtual IP, makes the virtual IP the source of the
/// error and the destination of the quoted packet. `id` is the backend id of the error's sender. An
/// error about a packet by address does not change.
#[inline(always)]
fn restore<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    error: &mut Error,
    (network, id): (u32, u32),
) -> Restored {
    if !icmp::parse(packet, error) || error.is_v6 || error.destination != error.quote.source || error.ttl <= 1
    {
        return Restored::BY_ADDRESS;
    }
    let Some(backend) = lookups.backend(id).filter(|backend| backend.network == network) else {
        return Restored::BY_ADDRESS;
    };
    let (virtual_ip, quote) = (backend.task_address6, &error.quote);
    let key = FlowKey::to_virtual_ip(
        network,
        virtual_ip.v4_octets(),
        (quote.source.v4_octets(), quote.source_port_be),
        (quote.protocol, quote.destination_port_be.get()),
    );
    if quote.destination != backend.task_address {
        return Restored::BY_ADDRESS;
    }
    match flow_ref::find_client_flow(lookups, &key) {
        Some(flow) if flow.value().backend_id() == id => errors::account(lookups, error, &flow),
        _ => return Restored::BY_ADDRESS,
    }
    let to = Translation {
        side: Side::Source,
        address: virtual_ip,
        port_be: quote.destination_port_be,
        client_port_be: quote.source_port_be,
    };
    Restored::reply(rewrite::translate_error(packet, error, &to).is_some())
}
