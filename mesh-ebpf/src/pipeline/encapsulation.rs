//! Tunnel packets that programs encapsulate and decapsulate by themselves.
//!
//! The kernel's VXLAN device can do all of it, at several times the cost: a route, a firewall, a
//! socket, a queue for each packet. Programs leave to it what only it can do: decapsulating packets
//! that stand for several (segmentation offload), packets to be fragmented, packets to be refused,
//! nodes whose MAC address is not known yet, congestion marks. Packets of a flow that use both ways
//! keep their order: on the way in, both ways end in the same queue of the uplink with the same
//! source port; on the way out, a flow stays with the device once the device had a packet of it
//! ([`flow_event::SEGMENTED`](crate::abi::flow_event::SEGMENTED)).

use super::tunnel_limits::{TunnelLimits, exceeds};
use super::{At, Origin, deliver_tunnelled, direction_of, dropped, member, owner, reply};
use crate::abi::{Address, Config, Direction, DropReason, Edge, Node};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::vxlan::{self, OVERHEAD, Vni};
use crate::parse::{Segment, eth, ipv4};
use crate::rewrite::{self, OuterHeaders};
use crate::verdict::{Fate, Tunnel};

/// The longest IP packet whose length fits the tunnel's headers.
const LONGEST: u32 = u16::MAX as u32 - OVERHEAD as u32;

/// The outer headers of a packet that goes in `direction`.
#[inline(always)]
pub(super) fn outer_headers<P: Packet>(
    packet: &P,
    config: &Config,
    segment: &Segment,
    node: &Node,
    vni: Vni,
    direction: Direction,
) -> OuterHeaders {
    let (client, client_port_be) = match direction {
        Direction::Request => (&segment.ip.source, segment.transport.source_port_be),
        Direction::Reply => (&segment.ip.destination, segment.transport.destination_port_be),
    };
    OuterHeaders {
        destination_mac: node.mac,
        source_mac: node.source_mac,
        source: config.address.v4_octets(),
        destination: node.address.v4_octets(),
        source_port_be: rewrite::tunnel_source_port(packet, client, client_port_be),
        port_be: config.tunnel_port_be,
        vni,
        cookie: node.cookie,
    }
}

/// TC: sends a packet into the tunnel, encapsulated by this program if it can, else by the VXLAN
/// device.
#[inline(always)]
pub(super) fn encapsulate<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
    tunnel: &Tunnel,
    direction: Direction,
) -> Fate {
    match lookups.peer(&Address::v4(tunnel.peer)).and_then(|index| lookups.node(index)) {
        Some(node) => encapsulate_to(packet, lookups, config, segment, (node, tunnel), direction),
        None if tunnel.vni.is_encrypted() => dropped(lookups, DropReason::NoEncryption, direction),
        None => Fate::via_device(tunnel.peer, tunnel.vni),
    }
}

/// As [`encapsulate`], where the other node's entry has been looked up already.
#[inline(always)]
pub(super) fn encapsulate_to<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
    (node, tunnel): (&Node, &Tunnel),
    direction: Direction,
) -> Fate {
    if tunnel.vni.is_encrypted() {
        return dropped(lookups, DropReason::NoEncryption, direction);
    }
    let by_device = Fate::via_device(tunnel.peer, tunnel.vni);
    if exceeds(packet, TunnelLimits::of_ports(config), segment) || segment.ip.total_len > LONGEST {
        return by_device;
    }
    let outer = outer_headers(packet, config, segment, node, tunnel.vni, direction);
    if node.mac.is_none() || packet.push_outer().is_none() {
        return by_device;
    }
    match rewrite::write_outer(packet, segment.ip.total_len, &outer) {
        Some(()) => Fate::emit(node.ifindex),
        None => dropped(lookups, DropReason::Resize, direction),
    }
}

/// Reads where a tunnel packet came from out of its outer headers. A packet without them gets the
/// peer 0.0.0.0, which no node has.
#[inline(always)]
pub fn outer_origin<P: Packet>(packet: &P) -> Origin {
    const SOURCE: usize = eth::LEN + ipv4::SOURCE;
    // Read in one piece: with two reads, the verifier finds the second one's bytes undefined on the
    // path where only the first one fails.
    match packet.read_bytes::<{ OVERHEAD - SOURCE }>(SOURCE) {
        Some([p0, p1, p2, p3, .., flags, _, _, _, v0, v1, v2, _]) if flags & vxlan::FLAG_VNI != 0 => {
            let vni = Vni(u32::from_be_bytes([0, v0, v1, v2]));
            Origin { peer: [p0, p1, p2, p3], vni, is_checked: false }
        }
        _ => Origin { peer: [0; 4], vni: Vni::request(0, false), is_checked: false },
    }
}

/// Tail call of [`super::uplink`] and [`super::uplink_fragment`]: a packet with the tunnel's
/// headers for this node, from a member or not.
#[inline(always)]
pub fn decapsulate<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, origin: Origin) -> Fate {
    let (Some(config), vni) = (lookups.config(), origin.vni) else {
        return Fate::PASS;
    };
    if origin.peer == [0; 4] {
        return Fate::PASS;
    }
    let direction = direction_of(vni);
    if let Some(reason) = member::refusal(packet, lookups, &origin.address()) {
        return dropped(lookups, reason, direction);
    }
    if vni.is_encrypted() {
        return dropped(lookups, DropReason::NotEncrypted, direction);
    }
    if vni.network_number() != 0 && vni.is_between_tasks() {
        return Fate::tail_call(Edge::NetworkDecapsulate);
    }
    let fate = if vni.is_between_tasks() || is_congested(packet) || is_fragment(packet) {
        Fate::PASS
    } else {
        forward_inner(packet, lookups, config, origin)
    };
    if fate == Fate::PASS { member::to_device(packet, lookups, vni, direction) } else { fate }
}

/// Decapsulates a member's packet and forwards it, if the program can; [`Fate::PASS`] if it can't.
#[inline(always)]
fn forward_inner<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    origin: Origin,
) -> Fate {
    let vni = origin.vni;
    if vni.is_reply() {
        return reply::forward_outer(packet, lookups, vni, At::Tc);
    }
    let Some(inner) = Segment::parse(packet, OVERHEAD) else {
        return Fate::PASS;
    };
    // The task accepts a TCP packet that stands for several as it is, as nothing between here and
    // the task segments it.
    let is_in_pieces = packet.segment_size() != 0 && inner.is_udp();
    // A refused packet is left to the device: the kernel doesn't let a program shorten a packet
    // that came in a tunnel to an answer.
    let is_refused = owner::backend_for(lookups, &inner, vni.backend()).is_none();
    if is_in_pieces || is_refused || packet.pull_outer().is_none() {
        return Fate::PASS;
    }
    match Segment::parse(packet, 0) {
        Some(segment) => deliver_tunnelled(packet, lookups, config, &segment, origin),
        None => dropped(lookups, DropReason::Malformed, Direction::Request),
    }
}

/// Whether the network set a congestion mark on the packet (ECN, RFC 3168): the device copies it to
/// the inner packet (RFC 6040).
#[inline(always)]
pub(super) fn is_congested<P: Packet>(packet: &P) -> bool {
    const CONGESTION_EXPERIENCED: u8 = 0b11;
    packet.read_bytes::<1>(eth::LEN + ipv4::TOS).is_some_and(|[tos]| tos & 0b11 == CONGESTION_EXPERIENCED)
}

/// Whether this is the first fragment of a tunnel packet, the one with the tunnel's headers. The
/// kernel reassembles the packet, with the mark of this fragment, before the device gets it.
#[inline(always)]
pub(super) fn is_fragment<P: Packet>(packet: &P) -> bool {
    const FLAGS: usize = eth::LEN + ipv4::FLAGS;
    packet.read_bytes::<2>(FLAGS).is_some_and(|flags| u16::from_be_bytes(flags) & ipv4::FRAGMENT != 0)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::abi::flow_event;
    use crate::testing::{Fixture, Frame, Hook, HostTables, fixtures};
    use crate::verdict::Verdict;

    /// A fixture of this hook whose name begins with `name`, and its tables.
    fn like(hook: Hook, name: &str) -> (Fixture, HostTables) {
        let is_it = |fixture: &Fixture| fixture.hook == hook && fixture.name.starts_with(name);
        let fixture = fixtures::all().into_iter().find(is_it).expect("a fixture of that name");
        let tables = HostTables::new(fixture.setup.clone());
        (fixture, tables)
    }

    fn frame(fixture: &Fixture, segment_size: u32) -> Frame {
        Frame { segment_size, ..Frame::new(fixture.input.clone()) }
    }

    #[test]
    fn a_flow_stays_with_the_device_once_it_had_a_reply_for_it() {
        let (fixture, tables) = like(Hook::Uplink, "tunnel: a reply goes to the client, with its headers");
        let run = |segment_size| Hook::Uplink.run(&mut frame(&fixture, segment_size), &tables);
        assert_eq!(run(0), fixture.verdict, "a whole packet");
        assert_eq!(run(1398), Verdict::Pass, "one that stands for several");
        assert_eq!(run(0), Verdict::Pass, "a whole one that may follow it");
        let events = tables.flows.established.borrow().values().map(|flow| flow.get().events).next();
        assert!(events.is_some_and(|events| events & flow_event::SEGMENTED != 0), "marked: {events:?}");
    }

    #[test]
    fn what_stands_for_several_goes_into_the_tunnel_as_it_is() {
        for (hook, name) in [
            (Hook::Uplink, "tc: a SYN for a remote backend goes into the tunnel, by the program"),
            (Hook::Task, "task: a SYN-ACK goes back through the tunnel, its MSS clamped, by the program"),
        ] {
            let (fixture, tables) = like(hook, name);
            let mut several = frame(&fixture, 1398);
            assert_eq!(hook.run(&mut several, &tables), fixture.verdict, "{name}");
            assert_eq!(several.bytes, fixture.output, "{name}");
        }
    }

    #[test]
    fn what_stands_for_longer_ones_than_the_tunnel_takes_is_for_the_device() {
        let (fixture, tables) =
            like(Hook::Uplink, "tc: a SYN for a remote backend goes into the tunnel, by the program");
        let mut several = frame(&fixture, 1420);
        let verdict = Hook::Uplink.run(&mut several, &tables);
        assert!(
            matches!(verdict, Verdict::ViaDevice(_)),
            "44 bytes of headers and 1420 are too many: {verdict:?}"
        );
    }

    #[test]
    fn a_task_takes_what_stands_for_several() {
        let (fixture, tables) = like(Hook::Uplink, "owner: a lost translation is made again, with");
        let mut several = frame(&fixture, 1398);
        assert_eq!(Hook::Uplink.run(&mut several, &tables), fixture.verdict, "verdict");
        assert_eq!(several.bytes, fixture.output, "packet");
    }

    #[test]
    fn congestion_marks_are_for_the_device() {
        for name in
            ["tunnel: a reply goes to the client, with", "owner: a lost translation is made again, with"]
        {
            let (fixture, tables) = like(Hook::Uplink, name);
            let mut marked = frame(&fixture, 0);
            marked.bytes[eth::LEN + ipv4::TOS] |= 0b11;
            let before: Vec<u8> = marked.bytes.clone();
            assert_eq!(Hook::Uplink.run(&mut marked, &tables), Verdict::Pass, "{name}");
            assert_eq!(marked.bytes, before, "{name}");
        }
    }
}
