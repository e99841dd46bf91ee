//! The tunnels to other nodes: what becomes of a frame of the device, and of a datagram of another
//! node. No I/O; only [`boringtun`]'s timers read a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::PublicKey;
use mesh_ebpf::abi::MESH_MAC;
use mesh_state::ids::NetworkId;
use mesh_state::network::ENCRYPTED;

use super::key::PrivateKey;
use crate::view::NodeView;

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
const IPV4: usize = 20;
/// Bytes that a tunnel adds to an IP packet: outer IPv4 and UDP headers, WireGuard's header and
/// authentication tag.
const WIREGUARD: u32 = 20 + 8 + 16 + 16;
/// WireGuard pads packets to a multiple of this.
const PADDING: u32 = 16;
/// Bytes that the overlay's outer headers add to a packet of a network.
const OVERLAY: u32 = 50;
/// Room for the longest frame or datagram, and what encryption adds.
pub(super) const ROOM: usize = 65_536 + 128;
/// The most peers: more than a cluster's nodes.
const INDEX_MAX: u32 = 1 << 24;

/// The MTU of the encryption device: the longest IP packet that, encrypted, fits the uplink's MTU.
pub(super) fn device_mtu(uplink: u32) -> u32 {
    uplink.saturating_sub(WIREGUARD) / PADDING * PADDING
}

/// The MTU of an encrypted network, a multiple of 4 as in Swarm; `plain` is that of one that isn't
/// encrypted.
pub fn overlay_mtu(plain: u32) -> u32 {
    device_mtu(plain + OVERLAY).saturating_sub(OVERLAY) / 4 * 4
}

/// Another node's end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// The node's public key.
    pub(super) public_key: [u8; 32],
    /// Its UDP port at the node's address.
    pub(super) port: u16,
}

/// The peers that a view asks for: the nodes that have members on an encrypted network on which
/// this node has some too.
pub(super) fn wanted(view: &NodeView) -> BTreeMap<Ipv4Addr, Peer> {
    let is_encrypted =
        |id: &NetworkId| view.networks.get(id).is_some_and(|network| network.number & ENCRYPTED != 0);
    let places = |is_own: bool| {
        let members = view.members.values().filter(move |member| (member.node_id == view.node_id) == is_own);
        members.flat_map(|member| member.attachments.iter().map(move |place| (&place.network_id, member)))
    };
    let own: BTreeSet<&NetworkId> =
        places(true).map(|(network, _)| network).filter(|network| is_encrypted(network)).collect();
    let others = places(false).filter(|(network, _)| own.contains(network));
    others
        .filter_map(|(_, member)| {
            let node = view.nodes.get(&member.node_id)?;
            let end = node.encryption?;
            Some((node.address, Peer { public_key: end.public_key, port: end.port }))
        })
        .collect()
}

/// What is to be done with bytes in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Send them to another node.
    Send(SocketAddrV4, &'a [u8]),
    /// Let the device receive them, a frame.
    Receive(&'a [u8]),
}

/// All tunnels of this node.
pub(super) struct Tunnels {
    own: Ipv4Addr,
    key: PrivateKey,
    peers: BTreeMap<Ipv4Addr, Tunnel>,
    next_index: u32,
    buffer: Vec<u8>,
}

struct Tunnel {
    peer: Peer,
    noise: Tunn,
}

impl Tunnels {
    /// No tunnels yet, for the node with this address and key.
    pub(super) fn new(own: Ipv4Addr, key: PrivateKey) -> Self {
        Self { own, key, peers: BTreeMap::new(), next_index: 0, buffer: vec![0; ROOM] }
    }

    /// Whether there is any tunnel.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Ends tunnels to nodes that are no peers any more, or have another key or port, and begins
    /// new ones. A new one begins with a handshake: the other node may have a session with an
    /// earlier process of this one, whose packets nobody can decrypt.
    pub(super) fn follow(&mut self, wanted: &BTreeMap<Ipv4Addr, Peer>, mut step: impl FnMut(Step<'_>)) {
        self.peers.retain(|address, tunnel| wanted.get(address) == Some(&tunnel.peer));
        for (address, peer) in wanted {
            if self.peers.contains_key(address) || *address == self.own {
                continue;
            }
            let index = self.next_index;
            self.next_index = (index + 1) % INDEX_MAX;
            let public = PublicKey::from(peer.public_key);
            let noise = Tunn::new(self.key.secret(), public, None, None, index, None);
            let mut tunnel = Tunnel { peer: *peer, noise };
            let first = tunnel.noise.format_handshake_initiation(&mut self.buffer, false);
            send(first, SocketAddrV4::new(*address, peer.port), &mut step);
            self.peers.insert(*address, tunnel);
        }
    }

    /// Encrypts a frame of the device. Drops what is no IPv4 packet from this node to a peer.
    pub(super) fn encrypt(&mut self, frame: &[u8], mut step: impl FnMut(Step<'_>)) {
        let Some((source, destination)) = addresses(frame) else { return };
        let Some(tunnel) = self.peers.get_mut(&destination).filter(|_| source == self.own) else { return };
        let to = SocketAddrV4::new(destination, tunnel.peer.port);
        send(tunnel.noise.encapsulate(&frame[ETHERNET..], &mut self.buffer), to, &mut step);
    }

    /// Handles a datagram of another node: a packet, or a part of a handshake. Drops what comes
    /// from nobody's address, and packets whose outer header names other nodes.
    pub(super) fn decrypt(&mut self, from: SocketAddr, datagram: &[u8], mut step: impl FnMut(Step<'_>)) {
        let IpAddr::V4(address) = from.ip() else { return };
        // An empty datagram would stand for a call again.
        let Some(tunnel) = self.peers.get_mut(&address).filter(|_| !datagram.is_empty()) else { return };
        let to = SocketAddrV4::new(address, tunnel.peer.port);
        let (header, packet) = self.buffer.split_at_mut(ETHERNET);
        let mut datagram = datagram;
        loop {
            match tunnel.noise.decapsulate(Some(from.ip()), datagram, packet) {
                TunnResult::WriteToNetwork(answer) => step(Step::Send(to, answer)),
                TunnResult::WriteToTunnelV4(inner, source) => {
                    let len = inner.len();
                    header[..6].copy_from_slice(&MESH_MAC.0);
                    header[6..12].copy_from_slice(&MESH_MAC.0);
                    header[12..].copy_from_slice(&[8, 0]);
                    if source == address {
                        step(Step::Receive(&self.buffer[..ETHERNET + len]));
                    }
                    return;
                }
                _ => return,
            }
            // After a handshake, packets that waited for it follow, one a call.
            datagram = &[];
        }
    }

    /// Lets time pass: new handshakes, keepalives, and the end of old sessions. To be called a few
    /// times a second.
    pub(super) fn tick(&mut self, mut step: impl FnMut(Step<'_>)) {
        for (address, tunnel) in &mut self.peers {
            let to = SocketAddrV4::new(*address, tunnel.peer.port);
            send(tunnel.noise.update_timers(&mut self.buffer), to, &mut step);
        }
    }
}

/// Sends what a tunnel has for the other node. Its errors say that a handshake or a session has
/// expired, or that none is due: the next packet begins another one.
fn send(result: TunnResult<'_>, to: SocketAddrV4, step: &mut impl FnMut(Step<'_>)) {
    if let TunnResult::WriteToNetwork(packet) = result {
        step(Step::Send(to, packet));
    }
}

/// Source and destination of a frame with an IPv4 packet; `None` for other frames.
fn addresses(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    if frame.len() < ETHERNET + IPV4 || frame[12..14] != [8, 0] || frame[ETHERNET] >> 4 != 4 {
        return None;
    }
    let at = |offset: usize| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = frame.get(ETHERNET + offset..ETHERNET + offset + 4)?.try_into().ok()?;
        Some(octets.into())
    };
    Some((at(12)?, at(16)?))
}

#[cfg(test)]
mod tests;
