//! Encrypted networks: their packets go to other nodes through the encryption device, a WireGuard
//! tunnel between the nodes, and never through the uplinks' programs or the VXLAN device.
//!
//! A packet gets the tunnel's outer headers here, as it would for the uplink, and then leaves by
//! the encryption device. What that device has decrypted comes in with the same headers. A bit of
//! the VNI says that a network is encrypted, and is part of the network's number in all maps: so no
//! look-up tells an encrypted network from another, and none can fail to.

use super::network::{Arrival, node_address};
use super::{Origin, TunnelLimits, dropped, is_too_big, owner, virtual_ip};
use crate::abi::{
    Address, Be16, Config, Direction, DropReason, Edge, EndpointKey, MESH_MAC, node_flag, protocol,
};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::vxlan::{SOURCE_PORT_MIN, Vni};
use crate::parse::{Segment, eth, icmp, ipv4, ipv6, pair, quad, transport};
use crate::rewrite::{self, OuterHeaders};
use crate::verdict::Fate;

/// Tail call of all programs of tasks' veths on networks: a task's packet on an encrypted network
/// to an address on another node. Whatever it is, it leaves by the encryption device or not at all.
/// Also of those that would let the VXLAN device have it: see [`Fate::verdict`].
#[inline(always)]
pub fn encrypt<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let (Some(config), Some(link)) = (lookups.config(), lookups.link(packet.ifindex())) else {
        return refused(lookups, DropReason::UnknownLink);
    };
    let (key, inner_len) = match destination(packet, lookups, link.network) {
        Ok(found) => found,
        Err(reason) => return refused(lookups, reason),
    };
    let Some(endpoint) = lookups.endpoint(&key).filter(|endpoint| !endpoint.is_local()) else {
        return refused(lookups, DropReason::UnknownEndpoint);
    };
    let Some(peer) = node_address(lookups, endpoint) else {
        return refused(lookups, DropReason::UnknownNode);
    };
    let encrypts = lookups.node(endpoint.node).is_some_and(|node| node.flags & node_flag::ENCRYPTS != 0);
    if config.encryption_ifindex == 0 || !encrypts {
        return refused(lookups, DropReason::NoEncryption);
    }
    if let Some(segment) = Segment::parse(packet, 0) {
        let limits = TunnelLimits::of_network(config, link.network);
        if is_too_big(packet, limits, &segment) {
            lookups.count_drop(DropReason::TooBig, Direction::Request);
            return Fate::answer(DropReason::TooBig, [0; 4]);
        }
        if owner::clamp_mss(packet, limits, &segment).is_none() {
            return refused(lookups, DropReason::Malformed);
        }
    }
    let outer = outer_headers(config, peer, Vni::network(link.network));
    let is_written =
        packet.push_outer().is_some() && rewrite::write_outer(packet, inner_len, &outer).is_some();
    if is_written { Fate::emit(config.encryption_ifindex) } else { refused(lookups, DropReason::Resize) }
}

/// The address that a task's packet is for, on that network, and the packet's length without its
/// Ethernet header.
#[inline(always)]
fn destination<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    network: u32,
) -> Result<(EndpointKey, u32), DropReason> {
    if packet.read_bytes::<2>(eth::TYPE) == Some(eth::IPV6_BE) {
        let (Some(ip), Some(subnet)) = (ipv6::parse(packet, eth::LEN), lookups.subnet6(network)) else {
            return Err(DropReason::Malformed);
        };
        if !subnet.has(&ip.destination) {
            return Err(DropReason::UnknownEndpoint);
        }
        return Ok((EndpointKey::new(network, ip.destination.v4_octets()), ip.total_len));
    }
    let Some(ip) = packet.read_bytes::<{ ipv4::LEN }>(eth::LEN) else { return Err(DropReason::Malformed) };
    let len = u32::from(u16::from_be_bytes(pair(&ip, ipv4::TOTAL_LEN)));
    Ok((EndpointKey::new(network, quad(&ip, ipv4::DESTINATION)), len))
}

/// The headers by which the encryption devices of both nodes know each other. There is one way
/// between them, so the source port need not spread flows over several.
#[inline(always)]
fn outer_headers(config: &Config, peer: [u8; 4], vni: Vni) -> OuterHeaders {
    OuterHeaders {
        destination_mac: MESH_MAC,
        source_mac: MESH_MAC,
        source: config.address.v4_octets(),
        destination: peer,
        source_port_be: Be16::new(SOURCE_PORT_MIN),
        port_be: config.tunnel_port_be,
        vni,
        cookie: 0,
    }
}

/// Entry of TC ingress on the encryption device: a packet that the device has decrypted, and whose
/// outer source it has found to be that of the node that encrypted it. The host stack gets nothing
/// from that device.
#[inline(always)]
pub fn decrypted<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, origin: Origin) -> Fate {
    let Some(config) = lookups.config() else {
        return refused(lookups, DropReason::UnknownPeer);
    };
    if !is_tunnel(packet, config) || origin.peer == [0; 4] {
        return refused(lookups, DropReason::Malformed);
    }
    if !origin.vni.is_encrypted() {
        return refused(lookups, DropReason::NotByUplink);
    }
    let Some(sender) = lookups.peer(&Address::v4(origin.peer)) else {
        return refused(lookups, DropReason::UnknownPeer);
    };
    let arrival = Arrival::judge_in_tunnel(packet, lookups, sender, origin.vni.network_number());
    if let Some(reason) = arrival.refused {
        return refused(lookups, reason);
    }
    if packet.pull_outer().is_none() {
        return refused(lookups, DropReason::Resize);
    }
    if arrival.backend == 0 {
        return arrival.deliver(packet, lookups);
    }
    if icmp::is_error(packet) {
        return Fate::tail_call(Edge::DecryptedError);
    }
    if arrival.is_fragment {
        return Fate::tail_call(Edge::DecryptedFragment);
    }
    virtual_ip::deliver_reply(packet, lookups, &arrival)
}

/// Drops a packet that [`decrypted`]'s program can't parse.
#[inline(always)]
pub fn decrypted_tagged<L: Lookups>(lookups: &L) -> Fate {
    refused(lookups, DropReason::Malformed)
}

/// Whether the packet has the tunnel's outer headers for this node, and is whole.
#[inline(always)]
fn is_tunnel<P: Packet>(packet: &P, config: &Config) -> bool {
    const IP: usize = eth::LEN - eth::TYPE;
    const PORT: usize = IP + ipv4::LEN + transport::DESTINATION_PORT;
    let Some(bytes) = packet.read_bytes::<{ PORT + 2 }>(eth::TYPE) else { return false };
    pair(&bytes, 0) == eth::IPV4_BE
        && bytes[IP + ipv4::VERSION] == ipv4::VERSION_IHL
        && u16::from_be_bytes(pair(&bytes, IP + ipv4::FLAGS)) & ipv4::FRAGMENT == 0
        && bytes[IP + ipv4::PROTOCOL] == protocol::UDP
        && quad(&bytes, IP + ipv4::DESTINATION) == config.address.v4_octets()
        && Be16(pair(&bytes, PORT)) == config.tunnel_port_be
}

/// Counts and drops a packet of an encrypted network.
#[inline(always)]
fn refused<L: Lookups>(lookups: &L, reason: DropReason) -> Fate {
    dropped(lookups, reason, Direction::Request)
}
