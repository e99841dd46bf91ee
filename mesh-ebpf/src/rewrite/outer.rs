//! The outer headers of the tunnel.

use super::headers::ipv4_header;
use super::set_macs;
use crate::abi::{Be16, Mac, protocol};
use crate::packet::Resizable;
use crate::parse::vxlan::{self, Vni};
use crate::parse::{Segment, eth, ipv4, udp};

/// Both ends of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Next hop.
    pub destination_mac: Mac,
    /// This node's uplink.
    pub source_mac: Mac,
    /// This node.
    pub source: [u8; 4],
    /// The other node.
    pub destination: [u8; 4],
    /// UDP port of the tunnel.
    pub port_be: Be16,
    /// What the other node is told.
    pub vni: Vni,
}

/// Puts the outer headers in front of the client's frame, which stays as it is and becomes the inner one.
#[inline(always)]
pub fn encapsulate<P: Resizable>(packet: &mut P, segment: &Segment, outer: &Outer) -> Option<()> {
    const IP: usize = eth::LEN;
    const UDP: usize = IP + ipv4::LEN;
    const VXLAN: usize = UDP + udp::LEN;

    let udp_len = segment.ip.total_len + (eth::LEN + udp::LEN + vxlan::LEN) as u32;
    let ip_len = u16::try_from(udp_len + ipv4::LEN as u32).ok()?;
    let udp_len = udp_len as u16;
    packet.push_outer()?;

    let ip = ipv4_header(ip_len, protocol::UDP, outer.source, outer.destination);
    let ([s0, s1], [d0, d1]) = (tunnel_source_port(segment).0, outer.port_be.0);
    let ([l0, l1], [v0, v1, v2, v3]) = (udp_len.to_be_bytes(), outer.vni.to_bytes());
    set_macs(packet, outer.destination_mac, outer.source_mac)?;
    packet.store(eth::TYPE, &eth::IPV4_BE)?;
    packet.store(IP, &ip)?;
    packet.store(UDP, &[s0, s1, d0, d1, l0, l1, 0, 0])?;
    packet.store(VXLAN, &[vxlan::FLAG_VNI, 0, 0, 0, v0, v1, v2, v3])
}

/// Outer source port: the same for a flow, spread over flows, so that the network between balances them.
#[inline(always)]
fn tunnel_source_port(segment: &Segment) -> Be16 {
    const EPHEMERAL: u16 = 0xc000;
    let client = segment.ip.source.word();
    let port = u32::from(segment.transport.source_port_be.get());
    let hash = (client ^ port << 16 ^ port).wrapping_mul(0x9e37_79b1);
    Be16::new(EPHEMERAL | (hash >> 18) as u16)
}
