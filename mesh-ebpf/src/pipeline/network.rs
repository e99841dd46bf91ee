//! Overlay networks, by address: packets that a task sends by its veth on a network, and packets of
//! networks out of the tunnel.
//!
//! On a node, a network is a bridge, over which its tasks there reach each other. For them, all
//! addresses elsewhere have one MAC, [`MESH_MAC`]: programs answer ARP requests with it, and send
//! packets to these addresses through the tunnel with the network's number in the VNI. At the other
//! end, network and address select the veth. Nothing is flooded, and nothing is translated; for
//! virtual IPs see [`super::virtual_ip()`].
//!
//! IPv6 goes the same way, see [`super::overlay6`].
//!
//! A task can only send as itself, which its own veth's program checks. The receiving node checks
//! that the sending node has the source address.

use super::encapsulation::{encapsulate_to, is_congested, is_fragment};
use super::{Origin, TunnelLimits, dropped, is_too_big, member, network6, owner, virtual_ip};
use crate::abi::{Config, Direction, DropReason, Edge, Endpoint, EndpointKey, Link, MESH_MAC, Mac, protocol};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::vxlan::{OVERHEAD, Vni};
use crate::parse::{Segment, arp, eth, icmp, ipv4, quad};
use crate::rewrite;
use crate::verdict::{Fate, Tunnel};

/// Entry of TC ingress on the host-side veth by which a task is connected to a network.
#[inline(always)]
pub fn overlay<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let link = lookups.link(packet.ifindex()).filter(|link| link.network != 0);
    let (Some(config), Some(link)) = (lookups.config(), link) else {
        return refused(lookups, DropReason::UnknownLink);
    };
    let Some([.., m0, m1, m2, m3, m4, m5, t0, t1]) = packet.read_bytes::<{ eth::LEN }>(0) else {
        return refused(lookups, DropReason::Malformed);
    };
    if Mac([m0, m1, m2, m3, m4, m5]) != link.mac {
        return refused(lookups, DropReason::SpoofedSource);
    }
    match [t0, t1] {
        eth::IPV4_BE => send(packet, lookups, config, link),
        arp::ETHERTYPE_BE => resolve(packet, lookups, link),
        eth::IPV6_BE => Fate::tail_call(Edge::Overlay6),
        _ => refused(lookups, DropReason::Isolated),
    }
}

/// Drops a packet that [`overlay`]'s program can't parse, as it has a VLAN tag.
#[inline(always)]
pub fn overlay_tagged<L: Lookups>(lookups: &L) -> Fate {
    refused(lookups, DropReason::Isolated)
}

/// Counts and drops a packet of a network.
#[inline(always)]
pub(super) fn refused<L: Lookups>(lookups: &L, reason: DropReason) -> Fate {
    dropped(lookups, reason, Direction::Request)
}

/// Handles an ARP packet: a request for an address that is not on this node is answered on the same
/// veth; all other ARP is left to the bridge.
#[inline(always)]
fn resolve<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, link: &Link) -> Fate {
    let Some(arp) = arp::parse(packet) else {
        return refused(lookups, DropReason::Malformed);
    };
    let is_request = arp.operation == arp::REQUEST;
    let sender = u32::from_ne_bytes(arp.sender);
    let is_probe = is_request && sender == 0;
    if arp.sender_mac != link.mac || sender != link.address && !is_probe {
        return refused(lookups, DropReason::SpoofedSource);
    }
    if !is_request || !is_elsewhere(lookups, &EndpointKey::new(link.network, arp.target)) {
        return Fate::PASS;
    }
    let reply = arp::reply(MESH_MAC, arp.target, &arp);
    let is_written = packet.write_and_resum(eth::LEN + arp::OPERATION, &reply).is_some()
        && rewrite::set_macs(packet, link.mac, MESH_MAC).is_some();
    if is_written { Fate::BOUNCE } else { refused(lookups, DropReason::Malformed) }
}

/// Whether the address is on another node, or a virtual IP.
#[inline(always)]
fn is_elsewhere<L: Lookups>(lookups: &L, key: &EndpointKey) -> bool {
    match lookups.endpoint(key) {
        Some(endpoint) => !endpoint.is_local(),
        None => lookups.virtual_ip(key).is_some(),
    }
}

/// Handles an IPv4 packet of a task.
#[inline(always)]
fn send<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, config: &Config, link: &Link) -> Fate {
    let Some(ip) = packet.read_bytes::<{ ipv4::LEN }>(eth::LEN) else {
        return refused(lookups, DropReason::Malformed);
    };
    if ip[ipv4::VERSION] >> 4 != 4 {
        return refused(lookups, DropReason::Malformed);
    }
    if u32::from_ne_bytes(quad(&ip, ipv4::SOURCE)) != link.address {
        return refused(lookups, DropReason::SpoofedSource);
    }
    let key = EndpointKey::new(link.network, quad(&ip, ipv4::DESTINATION));
    if link.is_broadcast(key.address) {
        return Fate::PASS;
    }
    match lookups.endpoint(&key) {
        Some(endpoint) if !endpoint.is_local() => to_node(packet, lookups, config, link.network, endpoint),
        Some(endpoint) if link.backend != 0 && endpoint.is_connected() => {
            packet.hand_over(link.reply_words(endpoint));
            Fate::tail_call(Edge::VirtualReply)
        }
        Some(endpoint) => to_neighbour(packet, lookups, endpoint),
        // A virtual IP, or nobody's address: the next program looks it up for new flows only.
        None if key.address & link.mask == link.subnet => {
            packet.hand_over(link.words());
            Fate::tail_call(Edge::VirtualIp)
        }
        None => refused(lookups, DropReason::Isolated),
    }
}

/// Leaves a packet for a task of this node, or for the node itself, to the bridge. If the sender
/// still has `MESH_MAC` for an address that was on another node, the program delivers it instead.
#[inline(always)]
pub(super) fn to_neighbour<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, endpoint: &Endpoint) -> Fate {
    let destination = packet.read_bytes::<6>(eth::DESTINATION);
    let is_stale = destination.is_some_and(|mac| Mac(mac) == MESH_MAC);
    if !is_stale || !endpoint.is_connected() {
        return Fate::PASS;
    }
    match packet.write_bytes(eth::DESTINATION, &endpoint.mac.0) {
        Some(()) => Fate::deliver(endpoint.ifindex),
        None => refused(lookups, DropReason::Malformed),
    }
}

/// Sends a packet through the tunnel to the node that has its destination. The packet does not
/// change, nor does its TTL, as a network is one link.
#[inline(always)]
pub(super) fn to_node<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    network: u32,
    endpoint: &Endpoint,
) -> Fate {
    let vni = Vni::network(network);
    if vni.is_encrypted() {
        return Fate::tail_call(Edge::Encrypt);
    }
    let Some(node) = lookups.node(endpoint.node).filter(|node| !node.address.is_none()) else {
        return refused(lookups, DropReason::UnknownNode);
    };
    let tunnel = Tunnel { peer: node.address.v4_octets(), vni };
    // Fragments, and other protocols than TCP and UDP.
    let Some(segment) = Segment::parse(packet, 0) else {
        return Fate::via_device(tunnel.peer, tunnel.vni);
    };
    let limits = TunnelLimits::of_network(config, network);
    if is_too_big(packet, limits, &segment) {
        lookups.count_drop(DropReason::TooBig, Direction::Request);
        return Fate::answer(DropReason::TooBig, [0; 4]);
    }
    if owner::clamp_mss(packet, limits, &segment).is_none() {
        return refused(lookups, DropReason::Malformed);
    }
    encapsulate_to(packet, lookups, config, &segment, (node, &tunnel), Direction::Request)
}

/// The IPv4 address of the node that has the endpoint.
#[inline(always)]
pub(super) fn node_address<L: Lookups>(lookups: &L, endpoint: &Endpoint) -> Option<[u8; 4]> {
    let node = lookups.node(endpoint.node)?;
    if node.address.is_none() { None } else { Some(node.address.v4_octets()) }
}

/// Tail call of [`super::decapsulate`]: a network's packet with its outer headers, from a member.
#[inline(always)]
pub fn network_decapsulate<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, origin: Origin) -> Fate {
    let fate = if is_congested(packet) || is_fragment(packet) {
        Fate::PASS
    } else {
        forward_inner(packet, lookups, origin)
    };
    if fate == Fate::PASS { member::to_device(packet, lookups, origin.vni, Direction::Request) } else { fate }
}

/// Decapsulates a packet and delivers it if the program can; else [`Fate::PASS`].
#[inline(always)]
fn forward_inner<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, origin: Origin) -> Fate {
    let Some(sender) = lookups.peer(&origin.address()) else {
        return refused(lookups, DropReason::UnknownPeer);
    };
    let network = origin.vni.network_number();
    let arrival = Arrival::judge_in_tunnel(packet, lookups, sender, network);
    if let Some(reason) = arrival.refused {
        return refused(lookups, reason);
    }
    // A task accepts a GSO packet of TCP as it is; only the device can split others. Errors and
    // fragments that must be translated are for other programs.
    let is_in_pieces = packet.segment_size() != 0 && arrival.protocol != protocol::TCP;
    let is_uncommon = arrival.is_fragment || arrival.protocol == icmp::PROTOCOL_V4;
    let is_for_other = arrival.backend != 0 && is_uncommon;
    if is_in_pieces || is_for_other || packet.pull_outer().is_none() {
        return Fate::PASS;
    }
    if arrival.backend != 0 {
        return virtual_ip::deliver_reply(packet, lookups, &arrival);
    }
    arrival.deliver(packet, lookups)
}

/// A network's packet that the VXLAN device has decapsulated, from the node with index `sender`.
#[inline(always)]
pub(super) fn from_device<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    sender: u32,
    network: u32,
) -> Fate {
    if packet.read_bytes::<2>(eth::TYPE) == Some(eth::IPV6_BE) {
        return Fate::tail_call(Edge::NetworkTunnel6);
    }
    let arrival = Arrival::judge(packet, lookups, 0, sender, network);
    if let Some(reason) = arrival.refused {
        return refused(lookups, reason);
    }
    if arrival.backend != 0 {
        return Fate::tail_call(Edge::VirtualTunnel);
    }
    arrival.deliver(packet, lookups)
}

/// A packet for a task of this node on a network. Every field is always written: see [`Fate`].
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    /// Why the packet is refused; `None` if it is delivered.
    pub(super) refused: Option<DropReason>,
    /// The network's number.
    pub(super) network: u32,
    /// The sender's id as a backend of a virtual IP; 0: it is no backend.
    pub(super) backend: u32,
    /// ifindex of the receiving task's veth.
    pub(super) ifindex: u32,
    /// MAC address of the receiving task's interface.
    pub(super) mac: Mac,
    /// IP protocol number of the packet.
    pub(super) protocol: u8,
    /// Whether the packet is a fragment.
    pub(super) is_fragment: bool,
}

impl Arrival {
    /// A packet that is refused.
    #[inline(always)]
    pub(super) const fn none(network: u32, reason: DropReason) -> Self {
        Self {
            refused: Some(reason),
            network,
            backend: 0,
            ifindex: 0,
            mac: Mac::NONE,
            protocol: 0,
            is_fragment: false,
        }
    }

    /// Checks a packet of either IP version, which has its outer headers: see [`Self::judge`] and
    /// [`network6::judge`].
    #[inline(always)]
    pub(super) fn judge_in_tunnel<P: Packet, L: Lookups>(
        packet: &P,
        lookups: &L,
        sender: u32,
        network: u32,
    ) -> Self {
        if packet.read_bytes::<2>(OVERHEAD + eth::TYPE) == Some(eth::IPV6_BE) {
            network6::judge(packet, lookups, OVERHEAD, sender, network)
        } else {
            Self::judge(packet, lookups, OVERHEAD, sender, network)
        }
    }

    /// Checks the IPv4 packet whose frame begins at `frame`: the node with index `sender` must have
    /// its source on that network, and a task of this node its destination.
    #[inline(always)]
    pub(super) fn judge<P: Packet, L: Lookups>(
        packet: &P,
        lookups: &L,
        frame: usize,
        sender: u32,
        network: u32,
    ) -> Self {
        const IP: usize = eth::LEN - eth::TYPE;

        let none = |reason| Self::none(network, reason);
        // One read instead of two: with two, the verifier finds the second one's bytes undefined on
        // the path where only the first one fails.
        let Some(bytes) = packet.read_bytes::<{ IP + ipv4::LEN }>(frame + eth::TYPE) else {
            return none(DropReason::Malformed);
        };
        if [bytes[0], bytes[1]] != eth::IPV4_BE {
            return none(DropReason::Malformed);
        }
        let Some(source) = lookups.endpoint(&EndpointKey::new(network, quad(&bytes, IP + ipv4::SOURCE)))
        else {
            return none(DropReason::ForeignSource);
        };
        if source.node != sender || sender == 0 {
            return none(DropReason::ForeignSource);
        }
        let key = EndpointKey::new(network, quad(&bytes, IP + ipv4::DESTINATION));
        match lookups.endpoint(&key) {
            Some(endpoint) if endpoint.is_connected() => Self {
                refused: None,
                network,
                backend: source.backend,
                ifindex: endpoint.ifindex,
                mac: endpoint.mac,
                protocol: bytes[IP + ipv4::PROTOCOL],
                is_fragment: u16::from_be_bytes([bytes[IP + ipv4::FLAGS], bytes[IP + ipv4::FLAGS + 1]])
                    & ipv4::FRAGMENT
                    != 0,
            },
            _ => none(DropReason::ForeignDestination),
        }
    }

    /// Delivers the packet to the task.
    #[inline(always)]
    pub(super) fn deliver<P: Packet, L: Lookups>(&self, packet: &mut P, lookups: &L) -> Fate {
        match rewrite::set_macs(packet, self.mac, MESH_MAC) {
            Some(()) => Fate::deliver(self.ifindex),
            None => refused(lookups, DropReason::Malformed),
        }
    }
}
