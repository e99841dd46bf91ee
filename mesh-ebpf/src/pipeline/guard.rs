//! The SYN guard's decisions about packets: see [`crate::guard`].

use super::{At, dropped, packet_count};
use crate::abi::{Direction, DropReason, FlowKey, Service, flow_event};
use crate::guard::{HASHED_SELECTION_NS, HONOURED_NS};
use crate::lookups::Lookups;
use crate::packet::Packet;
use crate::parse::Segment;
use crate::parse::tcp::Flags;
use crate::parse::vxlan::Vni;
use crate::select::{self, Selection};
use crate::verdict::Fate;

/// How to treat a packet without a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The packet is refused: it can't begin a flow.
    Refused,
    /// The packet creates a flow, whose backend the policy selects.
    ByPolicy,
    /// The packet creates a flow, whose backend the flow's hash selects, as it would without a
    /// flow.
    ByFlowHash,
    /// The packet belongs to a connection whose SYN created no flow; it creates the flow now.
    LateFlow,
    /// The packet is forwarded by the flow's hash, without a flow.
    Stateless,
}

impl Admission {
    /// Whether the packet creates a flow.
    #[inline(always)]
    pub(super) const fn creates_flow(self) -> bool {
        matches!(self, Self::ByPolicy | Self::ByFlowHash | Self::LateFlow)
    }

    /// The first events of the flow. If replies go to the client directly, the flow can't be
    /// confirmed by its task here, so it isn't marked as unproven.
    #[inline(always)]
    pub(super) const fn events(self, is_direct: bool) -> u32 {
        let by = if is_direct {
            flow_event::DSR
        } else if matches!(self, Self::LateFlow) {
            flow_event::UNPROVEN
        } else {
            0
        };
        flow_event::SYN | by
    }
}

/// Decides how to treat a packet without a flow.
#[inline(always)]
pub(super) fn admit<L: Lookups>(lookups: &L, segment: &Segment) -> Admission {
    let flags = segment.transport.flags;
    if segment.is_udp() {
        return Admission::ByPolicy;
    }
    if flags.is_opening() {
        return if !lookups.may_remember_syn() {
            Admission::Stateless
        } else if lookups.has_guarded(HASHED_SELECTION_NS) {
            Admission::ByFlowHash
        } else {
            Admission::ByPolicy
        };
    }
    let may_belong = !flags.has(Flags::SYN) && flags.has(Flags::ACK | Flags::RST);
    if !may_belong || !lookups.has_guarded(HONOURED_NS) {
        Admission::Refused
    } else if flags.has(Flags::RST | Flags::FIN) || !lookups.may_remember_late() {
        Admission::Stateless
    } else {
        Admission::LateFlow
    }
}

/// Selects the backend of a packet with this admission.
#[inline(always)]
pub(super) fn select<L: Lookups>(
    lookups: &L,
    service: &Service,
    key: &FlowKey,
    avoided: u32,
    admission: Admission,
) -> Option<u32> {
    let by = if matches!(admission, Admission::ByPolicy) {
        Selection::ByPolicy
    } else {
        Selection::ByFlowHash(lookups.keyed_hash(key))
    };
    select::select_by(lookups, service, by, &key.client, avoided)
}

/// Handles a reply without a flow, decapsulated or (`is_outer`) still with its outer headers: if
/// the flow's SYN may have created none, the kernel routes the reply to the client.
#[inline(always)]
pub(super) fn forward_reply<P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &L,
    segment: &Segment,
    vni: Vni,
    at: At,
    is_outer: bool,
) -> Fate {
    let Some(config) = lookups.config() else {
        return Fate::PASS;
    };
    if segment.is_udp() || config.uplink_ifindex == 0 || !lookups.has_guarded(HONOURED_NS) {
        return dropped(lookups, DropReason::NoFlow, Direction::Reply);
    }
    if let At::Xdp = at {
        return Fate::PASS;
    }
    if is_outer && (packet.segment_size() != 0 || packet.pull_outer().is_none()) {
        return Fate::PASS;
    }
    if let Some(backend) = lookups.backend(vni.sender()) {
        lookups.count_traffic(
            backend.service_index,
            vni.sender(),
            Direction::Reply,
            packet_count(packet, segment),
        );
    }
    Fate::route(config.uplink_ifindex)
}
