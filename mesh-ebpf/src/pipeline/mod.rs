//! From packet to fate: one entry function for each hook, which joins parsing, lookups, selection
//! and rewriting.
//!
//! * [`xdp`]: uplink, XDP. Encapsulates requests for remote backends and decapsulates replies. It
//!   passes packets for local backends and everything difficult to TC on the same uplink, which
//!   finds the same flow.
//! * [`uplink`]: uplink, TC ingress. Does the same for remote and local backends. Tunnel packets
//!   for this node continue in [`decapsulate`].
//! * [`device`], [`egress`]: VXLAN device and uplink, TC egress. Handle packets that the device
//!   sends.
//! * [`tunnel`]: VXLAN device, TC ingress. Handles requests for tasks of this node, replies for
//!   clients of this node, and packets of overlay networks.
//! * [`task`]: host-side veth of a task, TC ingress. Handles the task's replies, and keeps it from
//!   reaching other tasks.
//! * [`overlay`]: host-side veth of a task on an overlay network, TC ingress.
//! * [`decrypted`]: encryption device, TC ingress. Handles packets of encrypted networks.
//! * [`forwarded`]: uplink, TC egress. Records connections that the node forwards from a published
//!   port; changes no packet.
//!
//! Rare or long paths have functions and programs of their own, which the hooks' programs
//! tail-call, as a program's stack has 512 bytes:
//!
//! * [`refuse`]: makes an ICMP error of a packet.
//! * [`uplink_error`], [`tunnel_error`], [`task_error`]: ICMP errors that come in at these hooks.
//! * [`uplink_fragment`], [`tunnel_fragment`], [`task_fragment`]: fragments that come in there.
//! * [`overlay6`], [`network_tunnel6`]: IPv6 on overlay networks.
//! * [`network_decapsulate`], [`virtual_ip()`], [`virtual_reply`], [`virtual_tunnel`],
//!   [`virtual_error`], [`virtual_reply_error`], [`virtual_tunnel_error`], [`virtual_fragment`],
//!   [`virtual_reply_fragment`], [`virtual_tunnel_fragment`], [`encrypt`]: packets of overlay
//!   networks.
//!
//! Traffic is counted once, at the ingress node, by the function that forwards it. Drops are
//! counted where they are decided. The programs count passed packets, except those that XDP passes
//! to TC.

mod client_port;
#[cfg(test)]
mod duration_tests;
mod encapsulation;
mod encryption;
#[cfg(test)]
mod encryption_tests;
mod errors;
mod existing_flow;
mod flow_ref;
mod fragments;
mod guard;
mod ingress;
mod isolation;
#[cfg(test)]
mod malformed_tests;
mod member;
#[cfg(test)]
mod model_tests;
mod network;
mod network6;
#[cfg(test)]
mod network_tests;
mod outgoing;
mod owner;
mod reply;
#[cfg(test)]
mod syn_flood_tests;
mod tunnel_limits;
mod virtual_errors;
mod virtual_fragments;
mod virtual_ip;

pub use encapsulation::{decapsulate, outer_origin};
pub use encryption::{decrypted, decrypted_tagged, encrypt};
pub use errors::{task_error, tunnel_error, uplink_error};
pub use fragments::{task_fragment, tunnel_fragment, uplink_fragment};
pub use member::{device, egress};
pub use network::{network_decapsulate, overlay, overlay_tagged};
pub use network6::{network_tunnel6, overlay6};
pub use outgoing::forwarded;
pub use virtual_errors::{virtual_error, virtual_reply_error, virtual_tunnel_error};
pub use virtual_fragments::{virtual_fragment, virtual_reply_fragment, virtual_tunnel_fragment};
pub use virtual_ip::{virtual_ip, virtual_reply, virtual_tunnel};

use self::tunnel_limits::{TunnelLimits, is_too_big};
use crate::abi::{Address, Config, Direction, DropReason, Edge, Mac};
use crate::lookups::{Lookups, PacketCount};
use crate::packet::Packet;
use crate::parse::fragment::{self, FragmentHeader};
use crate::parse::vxlan::{OVERHEAD, Vni};
use crate::parse::{Segment, eth, icmp, vxlan};
use crate::rewrite;
use crate::verdict::{Answer, Fate};

/// Offset of the VXLAN header in a tunnel packet.
const OUTER: usize = OVERHEAD - vxlan::LEN;

/// The hook of an uplink at which a packet is. ICMP errors, which may be longer than the packets
/// that they answer, are left to TC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Xdp,
    Tc,
}

/// Entry of XDP on an uplink.
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

/// Entry of TC ingress on an uplink.
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

/// Where a tunnel packet came from, by the VXLAN device's metadata or by its own outer headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Outer source address: the node that sent it.
    pub peer: [u8; 4],
    /// Network identifier of the packet.
    pub vni: Vni,
    /// Whether an uplink's program has checked that a member sent the packet.
    pub is_checked: bool,
}

impl Origin {
    /// The origin of a packet that an uplink's program has checked.
    pub const fn checked(peer: [u8; 4], vni: Vni) -> Self {
        Self { peer, vni, is_checked: true }
    }

    /// The address of the node that sent the packet.
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

/// Entry of TC ingress on the VXLAN device.
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
    if origin.vni.is_encrypted() {
        return dropped(lookups, DropReason::NotEncrypted, direction);
    }
    if origin.vni.is_between_tasks() {
        return match origin.vni.network_number() {
            // By their addresses on `mesh`, which joins no tasks.
            0 => dropped(lookups, DropReason::Isolated, direction),
            number => network::from_device(packet, lookups, sender, number),
        };
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

/// Delivers a request out of the tunnel to a task of this node.
#[inline(always)]
fn deliver_tunnelled<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    config: &Config,
    segment: &Segment,
    origin: Origin,
) -> Fate {
    let source = owner::Arrival::Node { peer: origin.peer, is_dsr: origin.vni.is_dsr() };
    let fate = owner::deliver(packet, lookups, config, segment, origin.vni.backend(), &source);
    answer_refusal(packet, lookups, segment, fate, origin.peer)
}

/// Entry of TC ingress on a task's host-side veth.
#[inline(always)]
pub fn task<P: Packet, L: Lookups>(packet: &mut P, lookups: &L) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    let Some(segment) = Segment::parse(packet, 0) else {
        let fate = dispatch_uncommon(packet, Edge::TaskError, Edge::TaskFragment);
        return isolated(packet, lookups, fate);
    };
    let destination = owner::answer(packet, lookups, config, &segment);
    if let Some(tunnel) = destination.tunnel() {
        return encapsulation::encapsulate(packet, lookups, config, &segment, &tunnel, Direction::Reply);
    }
    let fate = answer_refused_reply(lookups, destination.by_device());
    isolated(packet, lookups, fate)
}

/// The last step for a packet that a task sent by its veth on `mesh`: what belongs to no flow must
/// not go to other tasks.
#[inline(always)]
fn isolated<P: Packet, L: Lookups>(packet: &P, lookups: &L, fate: Fate) -> Fate {
    if fate == Fate::PASS { isolation::pass(packet, lookups) } else { fate }
}

/// Dispatches a packet that is no whole TCP or UDP packet: fragments and ICMP errors to their
/// tail-call programs, the rest to the host stack.
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

/// Tail call [`crate::abi::Edge::Refuse`]: makes an ICMP error of a packet whose drop is counted
/// already.
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
        DropReason::TooBig => {
            let link = lookups.link(packet.ifindex());
            let limits = link.map_or(TunnelLimits::of_ports(config), |link| {
                TunnelLimits::of_network(config, link.network)
            });
            icmp::too_big(limits.mtu)
        }
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

/// Counts a drop and returns its fate.
#[inline(always)]
fn dropped<L: Lookups>(lookups: &L, reason: DropReason, direction: Direction) -> Fate {
    lookups.count_drop(reason, direction);
    Fate::dropped(reason)
}

/// The last step of every program: counts a refused packet and answers it by the way that it came,
/// through the tunnel of the node `back`, or, if that is 0.0.0.0, by its interface. This is the one
/// place that answers TCP with a RST, as that code is long. Another program makes ICMP errors, see
/// [`refuse`].
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

/// The last step for a task's packet, which is refused only for its size: counts it and has it
/// answered with an ICMP error.
#[inline(always)]
fn answer_refused_reply<L: Lookups>(lookups: &L, fate: Fate) -> Fate {
    let Some(reason) = fate.refusal() else {
        return fate;
    };
    lookups.count_drop(reason, Direction::Reply);
    Fate::answer(reason, [0; 4])
}

/// The fate of an answer that goes back to the node `back`, or, if that is 0.0.0.0, by its
/// interface.
#[inline(always)]
fn send_back(back: [u8; 4]) -> Fate {
    if back == [0; 4] { Fate::BOUNCE } else { Fate::via_device(back, Vni::reply(0)) }
}

/// What the packet adds to the traffic counters.
#[inline(always)]
fn packet_count<P: Packet>(packet: &P, segment: &Segment) -> PacketCount {
    PacketCount { packets: packet.segments(), bytes: segment.ip.total_len }
}

/// Source and destination MAC of the frame.
#[inline(always)]
fn macs<P: Packet>(packet: &P) -> Option<(Mac, Mac)> {
    Some((Mac(packet.read_bytes::<6>(eth::SOURCE)?), Mac(packet.read_bytes::<6>(eth::DESTINATION)?)))
}
