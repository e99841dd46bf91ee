//! From packet to verdict: one entry function for each hook, joining parsing, lookups, selection and rewriting.
//!
//! * [`xdp`]: uplink, XDP. Encapsulates for remote backends and takes replies out of the tunnel; leaves local
//!   backends and all that is difficult to TC on the same uplink, which meets the same flow.
//! * [`uplink`]: uplink, TC ingress. The same for remote and local backends.
//! * [`tunnel`]: VXLAN device, TC ingress. Requests for tasks of this node; replies for clients of this node.
//! * [`task`]: host-side veth of a task, TC ingress. The task's replies.
//!
//! Traffic is counted by whoever forwards it, once, at the ingress node. Drops are counted where they are decided.
//! Passed packets are the programs' to count: XDP leaves them to TC.

mod ingress;
#[cfg(test)]
mod malformed;
#[cfg(test)]
mod model;
mod reply;
mod target;
#[cfg(test)]
mod timed;
mod track;

use crate::abi::{Address, Config, Direction, DropReason, Mac};
use crate::lookups::{Load, Lookups};
use crate::packet::{Packet, Resizable};
use crate::parse::vxlan::{OVERHEAD, Vni};
use crate::parse::{Segment, eth, vxlan};
use crate::rewrite;
use crate::verdict::{Tunnel, Verdict};

/// Where the VXLAN header of a tunnel packet is.
const OUTER: usize = OVERHEAD - vxlan::LEN;

/// XDP on an uplink.
#[inline(always)]
pub fn xdp<P: Resizable, L: Lookups>(packet: &mut P, lookups: &L) -> Verdict {
    let Some(config) = lookups.config() else {
        return Verdict::Pass;
    };
    let Some(segment) = Segment::parse(packet, 0) else {
        return Verdict::Pass;
    };
    if !is_tunnel(config, &segment) {
        let verdict = ingress::forward_xdp(packet, lookups, config, &segment);
        return settle(packet, lookups, &segment, verdict, Verdict::Bounce, rewrite::answer_with_reset);
    }
    let Some(vni) = vxlan::parse(packet, OUTER) else {
        return Verdict::Pass;
    };
    if !lookups.is_peer(&segment.ip.source) {
        return drop(lookups, DropReason::UnknownPeer, direction_of(vni));
    }
    if vni.is_reply() { reply::forward_xdp(packet, lookups, vni) } else { Verdict::Pass }
}

/// TC on the ingress of an uplink.
#[inline(always)]
pub fn uplink<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Verdict {
    let Some(config) = lookups.config() else {
        return Verdict::Pass;
    };
    match Segment::parse(packet, 0) {
        Some(segment) if !is_tunnel(config, &segment) => {
            let verdict = ingress::forward(packet, lookups, config, &segment);
            settle(packet, lookups, &segment, verdict, Verdict::Bounce, rewrite::answer)
        }
        _ => Verdict::Pass,
    }
}

/// Where a packet out of the VXLAN device came from, as the device tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Outer source address.
    pub peer: [u8; 4],
    /// Network identifier.
    pub vni: Vni,
}

/// TC on the ingress of the VXLAN device.
#[inline(always)]
pub fn tunnel<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, origin: Origin) -> Verdict {
    let direction = direction_of(origin.vni);
    let Some(config) = lookups.config() else {
        return Verdict::Pass;
    };
    if !lookups.is_peer(&Address::v4(origin.peer)) {
        return drop(lookups, DropReason::UnknownPeer, direction);
    }
    let Some(segment) = Segment::parse(packet, 0) else {
        return drop(lookups, DropReason::Malformed, direction);
    };
    if origin.vni.is_reply() {
        return reply::forward(packet, lookups, &segment, origin.vni);
    }
    let source = target::Source::Node { peer: origin.peer, is_dsr: origin.vni.is_dsr() };
    let verdict = target::deliver(packet, lookups, config, &segment, origin.vni.backend(), &source);
    settle(packet, lookups, &segment, verdict, through(config, origin.peer, Vni::reply(0)), rewrite::answer)
}

/// TC on the ingress of a task's host-side veth.
#[inline(always)]
pub fn task<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Verdict {
    let Some(config) = lookups.config() else {
        return Verdict::Pass;
    };
    match Segment::parse(packet, 0) {
        Some(segment) => target::answer(packet, lookups, config, &segment),
        None => Verdict::Pass,
    }
}

/// Whether this is a tunnel packet for this node.
#[inline(always)]
fn is_tunnel(config: &Config, segment: &Segment) -> bool {
    segment.is_udp()
        && segment.transport.destination_port_be == config.tunnel_port_be
        && segment.ip.destination == config.address
}

/// Which way a tunnel packet goes.
#[inline(always)]
fn direction_of(vni: Vni) -> Direction {
    if vni.is_reply() { Direction::Reply } else { Direction::Request }
}

/// Counts and returns a drop.
#[inline(always)]
fn drop<L: Lookups>(lookups: &L, reason: DropReason, direction: Direction) -> Verdict {
    lookups.count_drop(reason, direction);
    Verdict::Drop(reason)
}

/// The last step of every program: counts a refused packet, and turns it into the RST or ICMP error that answers it. The
/// verdict is `sent` then. One place for all of them, as that code is long.
#[inline(always)]
fn settle<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    segment: &Segment,
    verdict: Verdict,
    sent: Verdict,
    answer: impl Fn(&mut P, &Segment) -> Option<()>,
) -> Verdict {
    let Verdict::Refuse(reason) = verdict else {
        return verdict;
    };
    lookups.count_drop(reason, Direction::Request);
    match answer(packet, segment) {
        Some(()) => sent,
        None => Verdict::Drop(reason),
    }
}

/// The packet's share of the traffic counters.
#[inline(always)]
fn load<P: Packet>(packet: &P, segment: &Segment) -> Load {
    Load { packets: packet.segments(), bytes: segment.ip.total_len }
}

/// Source and destination MAC of the frame.
#[inline(always)]
fn macs<P: Packet>(packet: &P) -> Option<(Mac, Mac)> {
    Some((Mac(packet.load::<6>(eth::SOURCE)?), Mac(packet.load::<6>(eth::DESTINATION)?)))
}

/// Through the VXLAN device to `peer`.
#[inline(always)]
fn through(config: &Config, peer: [u8; 4], vni: Vni) -> Verdict {
    Verdict::Tunnel(Tunnel { ifindex: config.tunnel_ifindex, local: config.address.v4_octets(), peer, vni })
}

const _: () = assert!(OVERHEAD == 50, "Config::tunnel_mtu and the MTU of tasks assume 50 bytes");
