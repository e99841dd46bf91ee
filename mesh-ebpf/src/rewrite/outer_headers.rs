//! The outer headers of tunnel packets.

use super::headers::ipv4_header;
use super::set_macs;
use crate::abi::{Address, Be16, Mac, protocol};
use crate::packet::Packet;
use crate::parse::vxlan::{self, SOURCE_PORT_MAX, SOURCE_PORT_MIN, Vni};
use crate::parse::{eth, ipv4, udp};

/// The fields of a tunnel packet's outer headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterHeaders {
    /// MAC address of the next hop.
    pub destination_mac: Mac,
    /// MAC address of this node's uplink.
    pub source_mac: Mac,
    /// IPv4 address of this node.
    pub source: [u8; 4],
    /// IPv4 address of the other node.
    pub destination: [u8; 4],
    /// Outer UDP source port, see [`tunnel_source_port`].
    pub source_port_be: Be16,
    /// UDP destination port of the tunnel.
    pub port_be: Be16,
    /// The VNI, which tells the other node what the packet is for.
    pub vni: Vni,
    /// The cookie by which the other node recognises a member; 0: none.
    pub cookie: u32,
}

/// Writes the outer headers into the room that [`Packet::push_outer`] made in front of a frame
/// whose IP packet has `inner_len` bytes. The frame becomes the inner one, unchanged.
#[inline(always)]
pub fn write_outer<P: Packet>(packet: &mut P, inner_len: u32, outer: &OuterHeaders) -> Option<()> {
    const IP: usize = eth::LEN;
    const UDP: usize = IP + ipv4::LEN;

    let udp_len = inner_len + (eth::LEN + udp::LEN + vxlan::LEN) as u32;
    let ip_len = u16::try_from(udp_len + ipv4::LEN as u32).ok()?;
    let udp_len = udp_len as u16;

    let ip = ipv4_header(ip_len, protocol::UDP, outer.source, outer.destination);
    let ([s0, s1], [d0, d1]) = (outer.source_port_be.0, outer.port_be.0);
    let [l0, l1] = udp_len.to_be_bytes();
    let [f, c0, c1, c2, v0, v1, v2, c3] = vxlan::header(outer.vni, outer.cookie);
    set_macs(packet, outer.destination_mac, outer.source_mac)?;
    packet.write_bytes(eth::TYPE, &eth::IPV4_BE)?;
    packet.write_and_resum(IP, &ip)?;
    packet.write_and_resum(UDP, &[s0, s1, d0, d1, l0, l1, 0, 0, f, c0, c1, c2, v0, v1, v2, c3])
}

/// The outer source port: constant for a flow and spread over flows, so that the network balances
/// flows over its paths. If the kernel knows the flow, it is the port that its VXLAN device would
/// choose, as other packets of the flow may go through that.
#[inline(always)]
pub fn tunnel_source_port<P: Packet>(packet: &P, client: &Address, client_port_be: Be16) -> Be16 {
    const PORTS: u64 = (SOURCE_PORT_MAX - SOURCE_PORT_MIN) as u64;
    if let Some(hash) = packet.flow_hash() {
        let hash = u64::from(hash ^ hash << 16);
        return Be16::new(SOURCE_PORT_MIN + ((hash * PORTS) >> 32) as u16);
    }
    let port = u32::from(client_port_be.get());
    let hash = (client.word() ^ port << 16 ^ port).wrapping_mul(0x9e37_79b1);
    Be16::new(SOURCE_PORT_MIN | (hash >> 18) as u16)
}
