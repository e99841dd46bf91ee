//! Judges which events of a packet count: a client's segment must have a sequence number close to
//! the client's, and an end that goes on has not closed.
//!
//! A flow stores only the upper half of the client's sequence number, so that hardly any packet has
//! to write it. A blind attacker hits the accepted range with one packet in 9 000. An endpoint
//! checks exactly, and its next packets then revive the flow.

use super::{SECOND_NS, datagram_events, events_of, is_established, is_unproven, proven};
use crate::abi::{Direction, flow_event};
use crate::parse::tcp::Flags;
use crate::parse::transport;

/// How long after a supposed end the packets of the other end show that there was none: packets
/// that were in flight at that time have arrived by then, or are lost.
pub const STILL_UNDER_WAY_NS: u64 = SECOND_NS;

/// How far behind the furthest segment of the client a segment may be that ends the connection, in
/// units of 64 KiB. A RST that answers the task's packet has the number that the task was waiting
/// for, which may be some data behind.
const BEHIND: u16 = 4;
/// How far ahead of it such a segment may be: the longest segment that the kernel hands over in one
/// piece, and as much again for one that was lost.
const AHEAD: u16 = 2;
/// How far ahead of it a plain data segment or ACK may be, in units of 64 KiB: segments in between
/// may have been lost before this node.
const FAR_AHEAD: u16 = 16;
/// A distance, in units of 64 KiB, that no TCP window reaches (RFC 7323): 1 GiB.
const BEYOND_ANY_WINDOW: u16 = 1 << 14;

/// The state of a flow before a packet.
#[derive(Clone, Copy, Debug)]
pub struct FlowState {
    /// The events seen so far.
    pub events: u32,
    /// TCP only: the upper half of the client's current sequence number.
    pub sequence: u16,
    /// How long ago the previous packet was seen, in nanoseconds.
    pub idle_ns: u64,
}

/// What a packet changes in the state of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Events to add.
    pub added: u32,
    /// Events to remove, as the packet contradicts them.
    pub cleared: u32,
    /// The upper half of the client's current sequence number.
    pub sequence: u16,
}

/// Judges what a packet changes in the state of its flow.
#[inline(always)]
pub const fn judge(direction: Direction, header: &transport::Header, flow: &FlowState) -> Judgement {
    let sequence = flow.sequence;
    if header.is_udp() {
        return Judgement { added: datagram_events(direction, flow.events), cleared: 0, sequence };
    }
    match direction {
        Direction::Request => judge_client(header, flow),
        Direction::Reply => Judgement {
            added: proven(direction, flow.events, events_of(direction, header.flags)),
            cleared: belied_by_task(header.flags, flow),
            sequence: acknowledged(header, flow),
        },
    }
}

/// Judges a client's segment: it changes nothing if its sequence number is not close to the
/// client's.
#[inline(always)]
const fn judge_client(header: &transport::Header, flow: &FlowState) -> Judgement {
    let flags = header.flags;
    let distance = header.sequence.wrapping_sub(flow.sequence).wrapping_add(BEHIND);
    let is_near = distance <= BEHIND + AHEAD;
    if flags.is_plain() {
        if distance > BEHIND + FAR_AHEAD {
            return Judgement { added: 0, cleared: 0, sequence: flow.sequence };
        }
        let sequence = if distance > BEHIND { header.sequence } else { flow.sequence };
        let added = proven(Direction::Request, flow.events, flow_event::ACK);
        return Judgement { added, cleared: belied_by_client(flags, flow), sequence };
    }
    let is_first = flags.has(Flags::SYN) && !flags.has(Flags::RST);
    if is_first {
        // On a live flow the endpoint answers a SYN with a challenge ACK (RFC 5961, section 4).
        let sequence = if is_established(flow.events) { flow.sequence } else { header.sequence };
        return Judgement { added: flow_event::SYN, cleared: 0, sequence };
    }
    let told = if is_near { events_of(Direction::Request, flags) } else { 0 };
    let added = proven(Direction::Request, flow.events, told);
    Judgement { added, cleared: 0, sequence: flow.sequence }
}

/// Whether a packet may be the client's, by its sequence number: a packet that anybody could send
/// in its name must not redirect replies.
#[inline(always)]
pub const fn is_clients(header: &transport::Header, sequence: u16) -> bool {
    header.is_udp() || header.sequence.wrapping_sub(sequence).wrapping_add(BEHIND) <= BEHIND + FAR_AHEAD
}

/// The client's current sequence number by what its task acknowledged. The task knows better if it
/// accepted a SYN, or acknowledges more than this node has seen.
#[inline(always)]
const fn acknowledged(header: &transport::Header, flow: &FlowState) -> u16 {
    let sequence = flow.sequence;
    let distance = header.acknowledged.wrapping_sub(sequence);
    let is_ahead = distance != 0 && distance < 1 << 15;
    let is_elsewhere = distance >= 1 << 15 && distance < BEYOND_ANY_WINDOW.wrapping_neg();
    let is_new = header.flags.has(Flags::SYN) || is_unproven(flow.events);
    if header.flags.has(Flags::ACK) && (is_new || is_ahead || is_elsewhere) {
        header.acknowledged
    } else {
        sequence
    }
}

/// Events that a client's data segment or ACK contradicts: its own RST, as an end that has reset a
/// connection sends no more; the task's RST, unless the segment may have been in flight when the
/// task sent it; its own FIN, if new data follows.
#[inline(always)]
const fn belied_by_client(flags: Flags, flow: &FlowState) -> u32 {
    let is_late = flow.idle_ns >= STILL_UNDER_WAY_NS;
    let is_own = flow.events & flow_event::TASK_RESET == 0;
    let reset =
        if is_own || is_late { flow.events & (flow_event::RESET | flow_event::TASK_RESET) } else { 0 };
    let has_closed = flow.events & flow_event::CLIENT_FIN != 0;
    if !(has_closed && is_late && flags.has(Flags::PSH)) {
        return reset;
    }
    // If the task answers the client directly, the client's FIN stood for both.
    let both = flow_event::CLIENT_FIN | flow_event::TASK_FIN;
    reset | if flow.events & flow_event::DSR != 0 { both } else { flow_event::CLIENT_FIN }
}

/// Events that a task's data segment or ACK contradicts.
#[inline(always)]
const fn belied_by_task(flags: Flags, flow: &FlowState) -> u32 {
    let is_late = flow.idle_ns >= STILL_UNDER_WAY_NS;
    let is_own = flow.events & flow_event::TASK_RESET != 0;
    if flags.is_plain() && (is_own || is_late) {
        flow.events & (flow_event::RESET | flow_event::TASK_RESET)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Be16, protocol};

    const UNIT: u32 = 1 << 16;
    /// A sequence number shortly before the numbers wrap around.
    const HERE: u32 = 0u32.wrapping_sub(3 * UNIT);
    const ESTABLISHED: u32 = flow_event::SYN | flow_event::SYN_ACK | flow_event::ACK;

    fn header(flags: u8, sequence: u32, acknowledged: u32) -> transport::Header {
        transport::Header {
            offset: 0,
            protocol: protocol::TCP,
            source_port_be: Be16::default(),
            destination_port_be: Be16::default(),
            len: 20,
            flags: Flags(flags),
            sequence: (sequence >> 16) as u16,
            acknowledged: (acknowledged >> 16) as u16,
        }
    }

    fn known(events: u32, idle_ns: u64) -> FlowState {
        FlowState { events, sequence: (HERE >> 16) as u16, idle_ns }
    }

    fn request(flags: u8, sequence: u32, events: u32, idle_ns: u64) -> Judgement {
        judge(Direction::Request, &header(flags, sequence, 0), &known(events, idle_ns))
    }

    fn reply(flags: u8, acknowledged: u32, events: u32, idle_ns: u64) -> Judgement {
        judge(Direction::Reply, &header(flags, 77, acknowledged), &known(events, idle_ns))
    }

    #[test]
    fn an_end_counts_only_where_the_client_is() {
        for (sequence, counts) in [
            (HERE, true),
            (HERE.wrapping_add(2 * UNIT), true),
            (HERE.wrapping_sub(4 * UNIT), true),
            (HERE.wrapping_add(3 * UNIT), false),
            (HERE.wrapping_sub(5 * UNIT), false),
            (12345 * UNIT, false),
        ] {
            let added = |flags| request(flags, sequence, ESTABLISHED, 0).added;
            assert_eq!(added(Flags::RST), if counts { flow_event::RESET } else { 0 }, "RST {sequence:#x}");
            let fin = flow_event::ACK | flow_event::CLIENT_FIN;
            assert_eq!(added(Flags::FIN | Flags::ACK), if counts { fin } else { 0 }, "FIN {sequence:#x}");
        }
        let task = reply(Flags::RST, 0, ESTABLISHED, 0);
        assert_eq!(task.added, flow_event::RESET | flow_event::TASK_RESET, "what a task sends is its own");
    }

    #[test]
    fn the_client_is_followed_and_nobody_else() {
        let at = |judgement: Judgement| judgement.sequence;
        let here = (HERE >> 16) as u16;
        let client_acks = |distance: u32| request(Flags::ACK, HERE.wrapping_add(distance), ESTABLISHED, 0);
        assert_eq!(at(client_acks(5 * UNIT)), here.wrapping_add(5), "past the end of the numbers");
        assert_eq!(at(client_acks(0)), here);
        assert_eq!(at(client_acks(UNIT.wrapping_neg())), here, "an old segment leads nowhere");
        assert_eq!(at(client_acks(17 * UNIT)), here, "nor one far ahead");
        assert_eq!(at(request(Flags::SYN, 9 * UNIT, ESTABLISHED, 0)), here, "nor a SYN on a live flow");
        assert_eq!(at(request(Flags::SYN, 9 * UNIT, flow_event::SYN, 0)), 9, "of one that begins it does");
    }

    #[test]
    fn the_task_knows_where_its_client_is() {
        let at = |flags, distance: u32| reply(flags, HERE.wrapping_add(distance), ESTABLISHED, 0).sequence;
        let here = (HERE >> 16) as u16;
        assert_eq!(at(Flags::ACK, 40 * UNIT), here.wrapping_add(40), "segments that were not seen here");
        assert_eq!(at(Flags::ACK, (40 * UNIT).wrapping_neg()), here, "it is behind by what is under way");
        assert_eq!(at(Flags::ACK, 0x9000_0000), here.wrapping_add(0x9000), "no window is that large");
        assert_eq!(
            at(Flags::SYN | Flags::ACK, UNIT.wrapping_neg()),
            here.wrapping_sub(1),
            "it took this SYN"
        );
        assert_eq!(at(Flags::RST, 40 * UNIT), here, "a RST without ACK acknowledges nothing");
    }

    #[test]
    fn who_goes_on_has_not_ended() {
        let (reset, both) = (flow_event::RESET, flow_event::RESET | flow_event::TASK_RESET);
        let late = STILL_UNDER_WAY_NS;
        let client = |flags, events, idle_ns| request(flags, HERE, ESTABLISHED | events, idle_ns).cleared;
        let task = |events, idle_ns| reply(Flags::ACK, HERE, ESTABLISHED | events, idle_ns).cleared;
        assert_eq!(client(Flags::ACK, reset, 0), reset, "a client that has not reset it");
        assert_eq!(client(Flags::ACK, both, late - 1), 0, "what was under way when the task did");
        assert_eq!(client(Flags::ACK, both, late), both, "later the task would have answered by a RST");
        assert_eq!(client(Flags::RST, reset, late), 0);
        assert_eq!(task(both, 0), both, "a task that has not reset it");
        assert_eq!(task(reset, late - 1), 0, "what was under way when the client did");
        assert_eq!(task(reset, late), reset);
        let elsewhere = request(Flags::ACK, 12345 * UNIT, ESTABLISHED | reset, late);
        assert_eq!(elsewhere.cleared, 0, "somebody else's packet proves nothing");
    }

    #[test]
    fn new_data_after_a_fin_belies_it() {
        let (fin, both) = (flow_event::CLIENT_FIN, flow_event::CLIENT_FIN | flow_event::TASK_FIN);
        let data = Flags::PSH | Flags::ACK;
        let cleared = |flags, events, idle_ns| request(flags, HERE, ESTABLISHED | events, idle_ns).cleared;
        assert_eq!(cleared(data, fin, STILL_UNDER_WAY_NS), fin);
        assert_eq!(cleared(data, fin, 0), 0, "it may be older than the FIN");
        assert_eq!(cleared(Flags::ACK, fin, STILL_UNDER_WAY_NS), 0, "who has closed acknowledges still");
        assert_eq!(
            cleared(data, both | flow_event::DSR, STILL_UNDER_WAY_NS),
            both,
            "where it stood for both"
        );
    }
}
