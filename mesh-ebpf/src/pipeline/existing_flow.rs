//! Packets of a flow that the ingress node knows already: the flow continues at its backend, or a
//! new flow takes its place.

use super::flow_ref::{self, FlowRef};
use super::ingress::{Choice, is_dsr};
use super::macs;
use crate::abi::{Backend, BackendState, Direction, DropReason, Flow, FlowKey, Timed};
use crate::conntrack;
use crate::lookups::{FlowTable, Lookups};
use crate::packet::Packet;
use crate::parse::Segment;
use crate::verdict::Fate;

/// Decision for a packet of an existing flow: forward it, or create a new flow in the place of the
/// old one. Every field is always written: see [`Fate`].
pub(super) struct ExistingFlow<'a> {
    /// What happens to the packet, unless a new flow takes the place of the old one.
    pub(super) choice: Choice<'a>,
    /// A new flow takes the place of the old one.
    pub(super) is_superseded: bool,
    /// The backend that the new flow should avoid if there is another one; 0: none.
    pub(super) avoided: u32,
}

impl<'a> ExistingFlow<'a> {
    #[inline(always)]
    const fn continues(choice: Choice<'a>) -> Self {
        Self { choice, is_superseded: false, avoided: 0 }
    }

    #[inline(always)]
    const fn superseded(avoided: u32) -> Self {
        Self { choice: Choice::none(Fate::PASS), is_superseded: true, avoided }
    }
}

/// Decides about a packet of an existing flow.
#[inline(always)]
pub(super) fn continue_flow<'a, P: Packet, L: Lookups>(
    packet: &mut P,
    lookups: &'a L,
    segment: &Segment,
    key: &FlowKey,
    flow: &FlowRef<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
) -> ExistingFlow<'a> {
    let id = flow.value().backend_id();
    let backend = lookups.backend(id).filter(|backend| backend.is_alive());
    let now_ns = lookups.now_ns();
    if segment.is_udp() {
        // UDP has no RST that makes the client retry: the next datagram selects another backend at
        // once.
        if backend.is_none() || conntrack::is_closed(flow.value().events) {
            forget_flow(lookups, key, id, flow.value().events);
            return ExistingFlow::superseded(id);
        }
    } else if segment.transport.flags.is_opening() {
        let repeated = classify_repeated_syn(&flow.value(), backend, now_ns);
        if let RepeatedSyn::ReselectBackend = repeated {
            lookups.count_unanswered(id);
        }
        if let RepeatedSyn::ReselectBackend | RepeatedSyn::NewConnection = repeated {
            let events = flow.value().events;
            forget_flow(lookups, key, id, events);
            let is_to_avoid = conntrack::is_unanswered(events) || conntrack::is_refused(events);
            return ExistingFlow::superseded(if is_to_avoid { id } else { 0 });
        }
    }
    let Some(backend) = backend else {
        let before = flow_ref::mark_reset(&flow.entry);
        if !conntrack::is_closed(before) {
            lookups.count_closed(id);
            if let Some(gone) = lookups.backend(id) {
                flow_ref::record_duration(lookups, Timed::Flow, gone.service_index, &flow.entry);
            }
        }
        return ExistingFlow::continues(Choice::none(Fate::refuse(DropReason::BackendGone)));
    };
    let transition =
        flow_ref::record_segment(lookups.flows(), key, flow, Direction::Request, &segment.transport, now_ns);
    if transition.closes {
        lookups.count_closed(id);
        flow_ref::record_duration(lookups, Timed::Flow, backend.service_index, &flow.entry);
    }
    if transition.revives {
        lookups.count_revived(id);
    }
    // True only for a flow whose task answers the client directly. This node doesn't see when the
    // task answered, so it doesn't time the handshake.
    if transition.answers {
        lookups.count_answered(id);
    }
    follow_client(packet, lookups, segment, key, flow, now_ns);
    ExistingFlow::continues(Choice::of(id, backend, flow.value().events))
}

/// Removes a flow that a new one replaces.
#[inline(always)]
fn forget_flow<L: Lookups>(lookups: &L, key: &FlowKey, backend: u32, events: u32) {
    lookups.flows().forget(key);
    if !conntrack::is_closed(events) {
        lookups.count_closed(backend);
    }
}

/// Updates the flow of a client whose packets now come by another way (a gateway that failed over):
/// replies go back the way that the packets come.
#[inline(always)]
fn follow_client<P: Packet, L: Lookups>(
    packet: &P,
    lookups: &L,
    segment: &Segment,
    key: &FlowKey,
    flow: &FlowRef<Flow, <L::Flows as FlowTable<FlowKey, Flow>>::Entry>,
    now_ns: u64,
) {
    if !flow.is_established {
        return;
    }
    let Some((client_mac, node_mac)) = macs(packet) else {
        return;
    };
    let (known, uplink) = (&flow.value(), packet.ifindex());
    let has_moved = known.client_mac != client_mac || known.node_mac != node_mac || known.uplink != uplink;
    if has_moved && conntrack::is_clients(&segment.transport, known.sequence) {
        let moved = Flow { seen_ns: now_ns, uplink, client_mac, node_mac, ..*known };
        lookups.flows().replace(key, &flow.entry, &moved);
    }
}

/// How to treat a SYN that matches an existing flow.
enum RepeatedSyn {
    /// A retransmission: it goes to the same backend.
    Retransmission,
    /// The first SYN of a new connection: the flow has ended, or its backend is gone.
    NewConnection,
    /// A retransmission that selects another backend, as the flow's backend did not answer the
    /// first SYN, and drains or has had its time. Replies of tunnelled flows pass this node, so the
    /// client sees as little of an answer as this node does. If the task answers the client
    /// directly, nobody here knows, so it gets more time.
    ReselectBackend,
}

#[inline(always)]
fn classify_repeated_syn(flow: &Flow, backend: Option<&Backend>, now_ns: u64) -> RepeatedSyn {
    let Some(backend) = backend else {
        return RepeatedSyn::NewConnection;
    };
    if conntrack::is_closed(flow.events) {
        return RepeatedSyn::NewConnection;
    }
    let is_leaving = backend.state == BackendState::Draining as u8 && !is_dsr(flow.events);
    let is_late = now_ns.saturating_sub(flow.opened_ns) >= conntrack::answer_timeout_ns(flow.events);
    if conntrack::is_unanswered(flow.events) && (is_leaving || is_late) {
        RepeatedSyn::ReselectBackend
    } else {
        RepeatedSyn::Retransmission
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::flow_event;

    #[test]
    fn a_task_that_answers_directly_gets_more_time() {
        let retries = |events, state: BackendState, ms: u64| {
            let flow = Flow { events: flow_event::SYN | events, ..Flow::default() };
            let backend = Backend { state: state as u8, ..Backend::default() };
            matches!(
                classify_repeated_syn(&flow, Some(&backend), ms * 1_000_000),
                RepeatedSyn::ReselectBackend
            )
        };
        let (active, draining) = (BackendState::Active, BackendState::Draining);
        assert!(!retries(0, active, 499) && retries(0, active, 500), "an answer through the tunnel");
        assert!(retries(0, draining, 1), "of a task that leaves");
        assert!(
            !retries(flow_event::DSR, active, 1999) && retries(flow_event::DSR, active, 2000),
            "a direct one"
        );
        assert!(!retries(flow_event::DSR, draining, 1), "its answer may be on its way");
        assert!(!retries(flow_event::SYN_ACK, active, 5000), "it has answered");
    }
}
