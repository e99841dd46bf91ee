//! From packet to verdict: one entry function for each hook, joining parsing, lookups, selection
//! and rewriting.
//!
//! * [`xdp`]: uplink, XDP. Encapsulates for remote backends and takes replies out of the tunnel;
//!   leaves local backends and all that is difficult to TC on the same uplink, which meets the same
//!   flow.
//! * [`uplink`]: uplink, TC ingress. The same for remote and local backends. Tunnel packets for
//!   this node go on in [`decapsulate`].
//! * [`device`], [`egress`]: VXLAN device and uplink, TC egress. What the device sends.
//! * [`tunnel`]: VXLAN device, TC ingress. Requests for tasks of this node; replies for clients of
//!   this node; what tasks of other nodes send to addresses of tasks here.
//! * [`task`]: host-side veth of a task, TC ingress. The task's replies.
//! * [`forwarded`]: uplink, TC egress. Remembers connections that the node forwards from a
//!   published port; changes no packet.
//!
//! What is rare or long has functions, and programs, of its own, in which those of the hooks
//! continue (a program's stack has 512 bytes):
//!
//! * [`refuse`]: makes an ICMP error of a packet.
//! * [`uplink_error`], [`tunnel_error`], [`task_error`]: ICMP errors that come in there.
//! * [`uplink_fragment`], [`tunnel_fragment`], [`task_fragment`]: likewise fragments.
//!
//! Traffic is counted by whoever forwards it, once, at the ingress node. Drops are counted where
//! they are decided. Passed packets are the programs' to count: XDP leaves them to TC.

mod client_port;
#[cfg(test)]
mod duration_tests;
mod encapsulation;
mod errors;
mod existing_flow;
mod flow_ref;
mod fragments;
mod guard;
mod ingress;
#[cfg(test)]
mod malformed_tests;
mod member;
#[cfg(test)]
mod model_tests;
mod outgoing;
mod owner;
mod reply;
#[cfg(test)]
mod syn_flood_tests;

pub use encapsulation::{decapsulate, outer_origin};
pub use errors::{task_error, tunnel_error, uplink_error};
pub use fragments::{task_fragment, tunnel_fragment, uplink_fragment};
pub use member::{device, egress};
pub use outgoing::forwarded;

use crate::abi::{Address, Config, Direction, DropReason, Edge, Mac};
use crate::lookups::{Lookups, PacketCount};
use crate::packet::Packet;
use crate::parse::fragment::{self, FragmentHeader};
use crate::parse::vxlan::{OVERHEAD, Vni};
use crate::parse::{Segment, eth, icmp, vxlan};
use crate::rewrite;
use crate::verdict::{Answer, Fate};

/// Where the VXLAN header of a tunnel packet is.
const OUTER: usize = OVERHEAD - vxlan::LEN;

/// The hook on an uplink that a packet is at. ICMP errors, which may be longer than what they
/// answer, are left to TC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Xdp,
    Tc,
}

/// XDP on an uplink.
#[inline(always)]
pub fn xdp<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    let Some(segment) = Segment::parse(packet, 0) else {
        return Fate::PASS;
    };
    if !is_tunnel(config, &segment) {
        let fate = ingress::forward_xdp(packet, lookups, config, &segment);
        return answer_refusal(packet, lookups, &segment, fate, [0; 4]);
    }
    let Some(vni) = vxlan::parse(packet, OUTER) else {
        return Fate::PASS;
    };
    if let Some(reason) = member::refusal(packet, lookups, &segment.ip.source) {
        return dropped(lookups, reason, direction_of(vni));
    }
    if vni.is_reply() { reply::forward_outer(packet, lookups, vni, At::Xdp) } else { Fate::PASS }
}

/// TC on the ingress of an uplink.
#[inline(always)]
pub fn uplink<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    let Some(segment) = Segment::parse(packet, 0) else {
        return dispatch_uncommon(packet, Edge::UplinkError, Edge::UplinkFragment);
    };
    if is_tunnel(config, &segment) {
        return Fate::tail_call(Edge::Decapsulate);
    }
    let destination = ingress::forward(packet, lookups, config, &segment);
    if let Some(tunnel) = destination.tunnel() {
        return encapsulation::encapsulate(packet, lookups, config, &segment, &tunnel, Direction::Request);
    }
    answer_refusal(packet, lookups, &segment, destination.by_device(), [0; 4])
}

/// Where a packet of the tunnel came from, as the VXLAN device or its own outer headers tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Outer source address.
    pub peer: [u8; 4],
    /// Network identifier.
    pub vni: Vni,
    /// Whether the program of an uplink has checked that a member sent it.
    pub is_checked: bool,
}

impl Origin {
    /// Of a packet that the program of an uplink has checked.
    pub const fn checked(peer: [u8; 4], vni: Vni) -> Self {
        Self { peer, vni, is_checked: true }
    }

    /// The peer's address.
    #[inline(always)]
    const fn address(self) -> Address {
        Address::v4(self.peer)
    }

    /// Which way the packet goes.
    #[inline(always)]
    pub fn direction(self) -> Direction {
        direction_of(self.vni)
    }
}

/// TC on the ingress of the VXLAN device.
#[inline(always)]
pub fn tunnel<P: Packet, L: Lookups>(packet: &mut P, lookups: &L, origin: Origin) -> Fate {
    let direction = direction_of(origin.vni);
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    if !origin.is_checked {
        return dropped(lookups, DropReason::NotByUplink, direction);
    }
    let Some(sender) = lookups.peer(&origin.address()) else {
        return dropped(lookups, DropReason::UnknownPeer, direction);
    };
    if origin.vni.is_between_tasks() {
        return member::to_task(packet, lookups, config, sender);
    }
    let Some(segment) = Segment::parse(packet, 0) else {
        let fate = dispatch_uncommon(packet, Edge::TunnelError, Edge::TunnelFragment);
        return if fate == Fate::PASS { dropped(lookups, DropReason::Malformed, direction) } else { fate };
    };
    if origin.vni.is_reply() {
        return reply::forward(packet, lookups, &segment, origin.vni);
    }
    deliver_tunnelled(packet, lookups, config, &segment, origin)
}

/// A request out of the tunnel, for a task of this node.
#[inline(always)]
fn deliver_tunnelled<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
    origin: Origin,
) -> Fate {
    let source = owner::Source::Node { peer: origin.peer, is_dsr: origin.vni.is_dsr() };
    let fate = owner::deliver(packet, lookups, config, segment, origin.vni.backend(), &source);
    answer_refusal(packet, lookups, segment, fate, origin.peer)
}

/// TC on the ingress of a task's host-side veth.
#[inline(always)]
pub fn task<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    let Some(segment) = Segment::parse(packet, 0) else {
        return dispatch_uncommon(packet, Edge::TaskError, Edge::TaskFragment);
    };
    let destination = owner::answer(packet, lookups, config, &segment);
    if let Some(tunnel) = destination.tunnel() {
        return encapsulation::encapsulate(packet, lookups, config, &segment, &tunnel, Direction::Reply);
    }
    answer_refused_reply(lookups, destination.by_device())
}

/// What becomes of a packet that is none of whole TCP or UDP.
#[inline(always)]
fn dispatch_uncommon<P: Packet>(packet: &P, error: Edge, fragment: Edge) -> Fate {
    if fragment::is_fragment(packet) {
        Fate::tail_call(fragment)
    } else if icmp::is_error(packet) {
        Fate::tail_call(error)
    } else {
        Fate::PASS
    }
}

/// Continues the other programs ([`crate::abi::Edge::Refuse`]): makes an ICMP error of a packet
/// that is counted already.
#[inline(always)]
pub fn refuse<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    answer: &Answer,
    fragment: &mut FragmentHeader,
) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::dropped(answer.reason);
    };
    let error = match answer.reason {
        DropReason::TooBig => icmp::too_big(config.tunnel_mtu),
        _ => icmp::PORT_UNREACHABLE,
    };
    let is_made = if let Some(segment) = Segment::parse(packet, 0) {
        rewrite::answer_with_error(packet, &segment, &error).is_some()
    } else {
        fragment::parse(packet, fragment)
            && fragment.is_first
            && rewrite::answer_fragment_with_error(packet, &fragment.header(), &error).is_some()
    };
    if is_made { send_back(answer.back) } else { Fate::dropped(answer.reason) }
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
fn dropped<L: Lookups>(lookups: &L, reason: DropReason, direction: Direction) -> Fate {
    lookups.count_drop(reason, direction);
    Fate::dropped(reason)
}

/// The last step of every program: counts a refused packet, and has it answered by the way it came:
/// through the tunnel of the node `back`, or, where that is 0.0.0.0, out of its interface. TCP that
/// nobody takes gets its RST here, in one place, as that code is long; ICMP errors are made by a
/// program of their own, see [`refuse`].
#[inline(always)]
fn answer_refusal<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    segment: &Segment,
    fate: Fate,
    back: [u8; 4],
) -> Fate {
    let Some(reason) = fate.refusal() else {
        return fate;
    };
    lookups.count_drop(reason, Direction::Request);
    if segment.is_udp() || matches!(reason, DropReason::TooBig) {
        return Fate::answer(reason, back);
    }
    match rewrite::answer_with_reset(packet, segment) {
        Some(()) => send_back(back),
        None => Fate::dropped(reason),
    }
}

/// The same for what a task sends, which is refused for its size only.
#[inline(always)]
fn answer_refused_reply<L: Lookups>(lookups: &L, fate: Fate) -> Fate {
    let Some(reason) = fate.refusal() else {
        return fate;
    };
    lookups.count_drop(reason, Direction::Reply);
    Fate::answer(reason, [0; 4])
}

/// The fate of an answer.
#[inline(always)]
fn send_back(back: [u8; 4]) -> Fate {
    if back == [0; 4] { Fate::BOUNCE } else { Fate::via_device(back, Vni::reply(0)) }
}

/// The packet's share of the traffic counters.
#[inline(always)]
fn packet_count<P: Packet>(packet: &P, segment: &Segment) -> PacketCount {
    PacketCount { packets: packet.segments(), bytes: segment.ip.total_len }
}

/// Whether the tunnel can't take the packet, and nobody may fragment it. What may be fragmented is,
/// by the VXLAN device, in its outer packets.
#[inline(always)]
fn is_too_big<P: Packet>(packet: &P, config: &Config, segment: &Segment) -> bool {
    segment.ip.total_len > config.tunnel_mtu && segment.ip.dont_fragment && exceeds(packet, config, segment)
}

/// Whether the packet is longer than the tunnel takes. Of one that stands for several (segmentation
/// offload) the size of those counts.
#[inline(always)]
fn exceeds<P: Packet>(packet: &P, config: &Config, segment: &Segment) -> bool {
    match packet.segment_size() {
        0 => segment.ip.total_len > config.tunnel_mtu,
        size => segment.headers_len() + size > config.tunnel_mtu,
    }
}

/// Source and destination MAC of the frame.
#[inline(always)]
fn macs<P: Packet>(packet: &P) -> Option<(Mac, Mac)> {
    Some((Mac(packet.read_bytes::<6>(eth::SOURCE)?), Mac(packet.read_bytes::<6>(eth::DESTINATION)?)))
}

const _: () = assert!(OVERHEAD == 50, "Config::tunnel_mtu and the MTU of tasks assume 50 bytes");
