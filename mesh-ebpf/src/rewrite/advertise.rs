//! The answer to a neighbour solicitation, built in the packet's place.

use super::headers::ipv6_header;
use super::set_macs;
use crate::abi::{Address, Mac};
use crate::csum;
use crate::packet::Packet;
use crate::parse::{eth, icmp, ipv6, ndp};

/// Offset of the hop limit in the IPv6 header.
const HOP_LIMIT: usize = ipv6::NEXT_HEADER + 1;

/// Turns a solicitation for `target` into the advertisement that `target` has the MAC address
/// `target_mac`, to who asked by `asker`, with the MAC address `asker_mac`. An asker without an
/// address checks that nobody has `target`: it is told by a multicast (RFC 4861, section 7.2.4).
#[inline(always)]
pub fn advertise<P: Packet>(
    packet: &mut P,
    target: &Address,
    target_mac: Mac,
    asker: &Address,
    asker_mac: Mac,
) -> Option<()> {
    const LEN: usize = ndp::LEN + ndp::OPTION_LEN;
    let is_solicited = !asker.is_none();
    let (to, to_mac) = if is_solicited { (*asker, asker_mac) } else { (ndp::ALL_NODES, ndp::ALL_NODES_MAC) };
    let mut body = ndp::advertisement(target, target_mac, is_solicited);
    let pseudo = csum::fold(csum::pseudo_header(target, &to, icmp::PROTOCOL_V6, LEN as u32));
    let [high, low] = (!csum::fold(u32::from(pseudo) + csum::sum(&body))).to_be_bytes();
    body[icmp::CHECKSUM] = high;
    body[icmp::CHECKSUM + 1] = low;
    let mut header = ipv6_header(LEN as u16, icmp::PROTOCOL_V6, target, &to);
    header[HOP_LIMIT] = ndp::HOP_LIMIT;
    packet.resize(eth::LEN + ipv6::LEN + LEN)?;
    set_macs(packet, to_mac, target_mac)?;
    packet.write_and_resum(eth::LEN, &header)?;
    packet.write_and_resum(eth::LEN + ipv6::LEN, &body)
}
