//! Flow state as a growing set of TCP events; all other state follows from it. UDP flows reuse the
//! same events, see [`datagram_events`].
//!
//! Events are added and removed by atomic operations, so that two CPUs that record a FIN of either
//! side at the same moment lose neither, and exactly one of them sees the flow close.
//!
//! Anyone can send a packet in a client's name. So a client's segment counts only if its sequence
//! number is close to where the client was last seen (RFC 9293, section 3.10.7.4; the endpoint
//! checks it exactly, and answers some segments with a challenge ACK, RFC 5961). And if an end that
//! supposedly closed goes on, it had not closed: see [`judge()`]. Nobody else can send in place of
//! a task, so a task's segments always count.

mod judge;

pub use judge::{FlowState, Judgement, STILL_UNDER_WAY_NS, is_clients, judge};

use crate::abi::{Direction, flow_event, protocol};
use crate::parse::tcp::Flags;
use crate::parse::transport;

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;
/// How long a task has to answer a SYN before a retransmitted SYN goes to another task. Clients
/// retransmit after a second (RFC 6298).
pub const ANSWER_TIMEOUT_NS: u64 = SECOND_NS / 2;
/// How long a task that answers its client directly has to answer a SYN. The ingress node doesn't
/// see its SYN-ACK, which may have been lost on the way. The task retransmits it when the client
/// first retransmits its SYN, so only the second retransmission, after three seconds, shows that
/// the task doesn't answer.
pub const DSR_ANSWER_TIMEOUT_NS: u64 = 2 * SECOND_NS;
/// Timeout of a half-open flow.
pub const HALF_OPEN_TIMEOUT_NS: u64 = 60 * SECOND_NS;
/// Timeout of an established flow that is idle.
pub const ESTABLISHED_TIMEOUT_NS: u64 = 2 * 3600 * SECOND_NS;
/// Timeout of a flow that is idle after one side's FIN.
pub const CLOSING_TIMEOUT_NS: u64 = 600 * SECOND_NS;
/// Timeout of an idle flow whose client sent a FIN and whose task answers the client directly: the
/// ingress node doesn't see whether the task has closed too.
pub const DSR_CLOSING_TIMEOUT_NS: u64 = 60 * SECOND_NS;
/// Timeout of a closed flow: retransmissions of its last packets still find it.
pub const CLOSED_TIMEOUT_NS: u64 = 10 * SECOND_NS;

/// How long an endpoint remembers a connection that both sides have closed: Linux' `TIME_WAIT`, and
/// a second for its timer.
pub const TIME_WAIT_NS: u64 = 61 * SECOND_NS;

/// Timeout of an established connection that this node began ([`flow_event::OUTGOING`]): that of
/// Linux' connection tracking, which translates it.
pub const OUTGOING_TIMEOUT_NS: u64 = 5 * 24 * 3600 * SECOND_NS;
/// Timeout of such a connection before it is established and after it has ended; longer than the
/// longest wait between two SYNs.
pub const OUTGOING_BRIEF_TIMEOUT_NS: u64 = 120 * SECOND_NS;

/// Timeout of a UDP flow with packets one way only, or with one request and its reply.
pub const UDP_TIMEOUT_NS: u64 = 30 * SECOND_NS;
/// Timeout of a UDP flow whose client sent more after a reply.
pub const UDP_STREAM_TIMEOUT_NS: u64 = 180 * SECOND_NS;

/// The events of a segment that count. A flow that began with another packet than a SYN is
/// confirmed by its task, not by whoever sends ACKs: by the task's first segment that belongs to a
/// connection. A SYN-ACK (which answers anybody's SYN) and a RST don't confirm it.
#[inline(always)]
pub const fn proven(direction: Direction, before: u32, events: u32) -> u32 {
    if !is_unproven(before) {
        return events;
    }
    match direction {
        Direction::Reply if events & flow_event::SYN_ACK != 0 => 0,
        Direction::Reply if events & flow_event::RESET != 0 => events,
        Direction::Reply => events | flow_event::SYN_ACK | flow_event::ACK,
        Direction::Request => events & !flow_event::ACK,
    }
}

/// Whether the task still has to confirm that the connection exists.
#[inline(always)]
pub const fn is_unproven(events: u32) -> bool {
    events & (flow_event::UNPROVEN | flow_event::ACK) == flow_event::UNPROVEN
}

/// The first events of a flow that begins with this packet at the task's node. Unless the packet is
/// a SYN, the task first has to confirm that the connection exists.
#[inline(always)]
pub const fn beginning(header: &transport::Header) -> u32 {
    if header.is_udp() {
        return flow_event::SYN;
    }
    let events = events_of(Direction::Request, header.flags);
    if events & flow_event::ACK == 0 { events } else { events & !flow_event::ACK | flow_event::UNPROVEN }
}

/// The events that a datagram stands for: the client's first is a SYN, a reply a SYN-ACK, and what
/// the client sends after a reply an ACK. If replies go another way, every further datagram of the
/// client counts as sent after a reply.
#[inline(always)]
pub const fn datagram_events(direction: Direction, before: u32) -> u32 {
    match direction {
        Direction::Reply => flow_event::SYN_ACK,
        Direction::Request if before & (flow_event::SYN_ACK | flow_event::DSR) != 0 => flow_event::ACK,
        Direction::Request => flow_event::SYN,
    }
}

/// The events that a segment stands for.
#[inline(always)]
pub const fn events_of(direction: Direction, flags: Flags) -> u32 {
    match direction {
        Direction::Request if flags.has(Flags::RST) => flow_event::RESET,
        Direction::Reply if flags.has(Flags::RST) => flow_event::RESET | flow_event::TASK_RESET,
        Direction::Request if flags.has(Flags::SYN) => flow_event::SYN,
        Direction::Request if flags.has(Flags::FIN) => flow_event::ACK | flow_event::CLIENT_FIN,
        Direction::Request if flags.has(Flags::ACK) => flow_event::ACK,
        Direction::Reply if flags.has(Flags::SYN) => flow_event::SYN_ACK,
        Direction::Reply if flags.has(Flags::FIN) => flow_event::TASK_FIN,
        Direction::Request | Direction::Reply => 0,
    }
}

/// The events that a segment with `added` adds at the ingress node, to a flow with these events. If
/// replies go to the client directly, the node sees no FIN of the task, so the client's FIN counts
/// for both.
#[inline(always)]
pub const fn at_ingress(events: u32, added: u32) -> u32 {
    if events & flow_event::DSR != 0 && added & flow_event::CLIENT_FIN != 0 {
        added | flow_event::TASK_FIN
    } else {
        added
    }
}

/// Whether adding `added` to `before` shows that the task accepted the connection: by its SYN-ACK,
/// or, if that goes to the client directly, by the client's ACK.
#[inline(always)]
pub const fn answers(before: u32, added: u32) -> bool {
    let telling = if before & flow_event::DSR == 0 {
        flow_event::SYN_ACK
    } else {
        flow_event::SYN_ACK | flow_event::ACK
    };
    before & telling == 0 && added & telling != 0
}

/// Whether the flow has ended: by a RST, or by FINs of both sides.
#[inline(always)]
pub const fn is_closed(events: u32) -> bool {
    let fins = flow_event::CLIENT_FIN | flow_event::TASK_FIN;
    events & flow_event::RESET != 0 || events & fins == fins
}

/// Whether at least one side has closed the flow.
const fn is_closing(events: u32) -> bool {
    events & (flow_event::CLIENT_FIN | flow_event::TASK_FIN | flow_event::RESET) != 0
}

/// Whether removing `cleared` shows that a flow goes on that was counted as ended.
#[inline(always)]
pub const fn revives(before: u32, cleared: u32) -> bool {
    is_closed(before) && !is_closed(before & !cleared)
}

/// Whether the task refused the connection.
#[inline(always)]
pub const fn is_refused(events: u32) -> bool {
    events & flow_event::TASK_RESET != 0 && events & (flow_event::SYN_ACK | flow_event::ACK) == 0
}

/// Whether this node began the connection: see [`flow_event::OUTGOING`].
#[inline(always)]
pub const fn is_outgoing(events: u32) -> bool {
    events & flow_event::OUTGOING != 0
}

/// Whether the client has confirmed the flow.
#[inline(always)]
pub const fn is_established(events: u32) -> bool {
    events & flow_event::ACK != 0
}

/// Whether the client has confirmed the flow and it has not ended: such a flow is worth keeping
/// however long it is idle.
#[inline(always)]
pub const fn is_lasting(events: u32) -> bool {
    is_established(events) && !is_closed(events)
}

/// Whether adding `added` to `before` closes the flow.
#[inline(always)]
pub const fn closes(before: u32, added: u32) -> bool {
    !is_closed(before) && is_closed(before | added)
}

/// Whether the task has not answered the SYN yet.
#[inline(always)]
pub const fn is_unanswered(events: u32) -> bool {
    events & (flow_event::SYN_ACK | flow_event::ACK | flow_event::RESET | flow_event::UNPROVEN) == 0
}

/// How long after the first SYN a retransmitted one goes to another task.
#[inline(always)]
pub const fn answer_timeout_ns(events: u32) -> u64 {
    if events & flow_event::DSR != 0 { DSR_ANSWER_TIMEOUT_NS } else { ANSWER_TIMEOUT_NS }
}

/// Whether a RST of the task in this state refuses the connection.
#[inline(always)]
pub const fn is_refusal(before: u32) -> bool {
    is_unanswered(before)
}

/// How long after its last packet the sweep removes a flow with these events.
pub const fn idle_timeout_ns(ip_protocol: u8, events: u32) -> u64 {
    let is_reset = events & flow_event::RESET != 0;
    if is_outgoing(events) {
        outgoing_timeout_ns(ip_protocol, events)
    } else if is_closed(events) && events & flow_event::DSR != 0 && !is_reset {
        DSR_CLOSING_TIMEOUT_NS
    } else if is_closed(events) {
        CLOSED_TIMEOUT_NS
    } else if ip_protocol == protocol::UDP {
        if is_established(events) { UDP_STREAM_TIMEOUT_NS } else { UDP_TIMEOUT_NS }
    } else if is_closing(events) {
        CLOSING_TIMEOUT_NS
    } else if is_established(events) || events & flow_event::UNPROVEN != 0 {
        ESTABLISHED_TIMEOUT_NS
    } else {
        HALF_OPEN_TIMEOUT_NS
    }
}

/// How long after its last packet the sweep removes a translation: it is kept for as long as the
/// task may remember the connection.
pub const fn translation_timeout_ns(ip_protocol: u8, events: u32) -> u64 {
    let usual_ns = idle_timeout_ns(ip_protocol, events);
    if is_remembered(events, 0) && usual_ns < TIME_WAIT_NS { TIME_WAIT_NS } else { usual_ns }
}

/// Whether an endpoint may still remember an ended connection with these events that has been idle
/// for so long (`TIME_WAIT`).
#[inline(always)]
pub const fn is_remembered(events: u32, idle_ns: u64) -> bool {
    is_closed(events) && events & flow_event::RESET == 0 && idle_ns < TIME_WAIT_NS
}

const fn outgoing_timeout_ns(ip_protocol: u8, events: u32) -> u64 {
    if ip_protocol == protocol::UDP {
        UDP_STREAM_TIMEOUT_NS
    } else if is_established(events) && !is_closed(events) {
        OUTGOING_TIMEOUT_NS
    } else {
        OUTGOING_BRIEF_TIMEOUT_NS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SYN: Flags = Flags(Flags::SYN);
    const SYN_ACK: Flags = Flags(Flags::SYN | Flags::ACK);
    const ACK: Flags = Flags(Flags::ACK);
    const FIN: Flags = Flags(Flags::FIN | Flags::ACK);
    const RST: Flags = Flags(Flags::RST);

    fn after(segments: &[(Direction, Flags)]) -> u32 {
        segments.iter().fold(0, |events, (direction, flags)| events | events_of(*direction, *flags))
    }

    #[test]
    fn a_connection_from_syn_to_last_fin() {
        use Direction::{Reply, Request};
        let mut walk = std::vec![(Request, SYN)];
        assert!(!is_established(after(&walk)), "only a SYN");
        assert_eq!(idle_timeout_ns(protocol::TCP, after(&walk)), HALF_OPEN_TIMEOUT_NS);
        walk.push((Reply, SYN_ACK));
        assert!(!is_established(after(&walk)), "the client has not answered yet");
        walk.push((Request, ACK));
        assert!(is_established(after(&walk)), "handshake complete");
        assert_eq!(idle_timeout_ns(protocol::TCP, after(&walk)), ESTABLISHED_TIMEOUT_NS);
        walk.push((Request, FIN));
        assert!(!is_closed(after(&walk)), "the task may still send");
        assert_eq!(idle_timeout_ns(protocol::TCP, after(&walk)), CLOSING_TIMEOUT_NS);
        assert!(closes(after(&walk), events_of(Reply, FIN)), "second FIN closes");
        walk.push((Reply, FIN));
        assert_eq!(idle_timeout_ns(protocol::TCP, after(&walk)), CLOSED_TIMEOUT_NS);
        assert!(!closes(after(&walk), events_of(Reply, FIN)), "a repeated FIN closes nothing again");
    }

    #[test]
    fn a_rst_before_the_syn_ack_is_a_refusal() {
        use Direction::{Reply, Request};
        assert!(is_refusal(after(&[(Request, SYN)])));
        assert!(!is_refusal(after(&[(Request, SYN), (Reply, SYN_ACK)])));
        assert!(!is_refusal(after(&[(Request, SYN), (Reply, RST)])), "counted once");
    }

    #[test]
    fn of_a_directly_answered_flow_the_client_tells_all() {
        let mut events = flow_event::SYN | flow_event::DSR;
        assert!(!answers(events, events_of(Direction::Request, SYN)), "a SYN tells nothing");
        assert!(answers(events, events_of(Direction::Request, ACK)), "the client got an answer");
        events |= events_of(Direction::Request, ACK);
        assert!(!answers(events, events_of(Direction::Request, ACK)), "counted once");
        let fin = at_ingress(events, events_of(Direction::Request, FIN));
        assert!(closes(events, fin), "over for counting");
        assert!(is_closed(events | fin), "a SYN now is a new flow");
        assert_eq!(
            idle_timeout_ns(protocol::TCP, events | fin),
            DSR_CLOSING_TIMEOUT_NS,
            "the task may still send"
        );
        assert_eq!(idle_timeout_ns(protocol::TCP, events | flow_event::RESET), CLOSED_TIMEOUT_NS);
        let seen = flow_event::SYN | flow_event::SYN_ACK;
        assert_eq!(
            at_ingress(seen, flow_event::CLIENT_FIN),
            flow_event::CLIENT_FIN,
            "of another flow it does not"
        );
    }

    fn segment() -> impl Strategy<Value = (Direction, Flags)> {
        (prop_oneof![Just(Direction::Request), Just(Direction::Reply)], any::<u8>().prop_map(Flags))
    }

    proptest! {
        /// The model: a naive state machine with one bool for each thing that matters.
        #[test]
        fn agrees_with_the_model(segments in prop::collection::vec(segment(), 0..12)) {
            let (mut events, mut closures) = (0, 0);
            let (mut client_fin, mut task_fin, mut reset, mut acked) = (false, false, false, false);
            for (direction, flags) in segments {
                let added = events_of(direction, flags);
                closures += u32::from(closes(events, added));
                prop_assert_eq!(events | added, added | events, "events only grow");
                events |= added;
                let (rst, syn) = (flags.has(Flags::RST), flags.has(Flags::SYN));
                reset |= rst;
                if !rst && !syn {
                    client_fin |= direction == Direction::Request && flags.has(Flags::FIN);
                    task_fin |= direction == Direction::Reply && flags.has(Flags::FIN);
                    acked |= direction == Direction::Request && flags.has(Flags::FIN | Flags::ACK);
                }
            }
            prop_assert_eq!(is_closed(events), reset || (client_fin && task_fin));
            prop_assert_eq!(is_closing(events), reset || client_fin || task_fin);
            prop_assert_eq!(is_established(events), acked);
            prop_assert_eq!(closures, u32::from(is_closed(events)), "closed exactly once");
        }
    }
}
