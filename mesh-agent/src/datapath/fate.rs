//! Which flows are over: closed ones after a short linger, idle ones after their timeout (their service's, if it has one), flows of
//! backends that are gone at once.
//!
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use mesh_ebpf::abi::{Flow, FlowKey, Nat, NatKey};
use mesh_ebpf::conntrack::{
    ESTABLISHED_TIMEOUT_NS, idle_timeout_ns, is_closed, is_outgoing, translation_timeout_ns,
};

/// What becomes of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Keep,
    /// It has ended.
    Closed,
    /// Nothing of it was seen for too long.
    Idle,
    /// It can't go on.
    BackendGone,
}

/// The part of a table's value that its fate depends on.
pub(super) trait Tracked: Copy {
    /// When it began.
    fn opened_ns(&self) -> u64;
    /// When its last packet was seen.
    fn seen_ns(&self) -> u64;
    /// What has been seen of it.
    fn events(&self) -> u32;
    /// The backend's id.
    fn backend(&self) -> u32;
    /// How long it is remembered after its last packet.
    fn timeout_ns(&self, protocol: u8) -> u64;
}

impl Tracked for Flow {
    fn opened_ns(&self) -> u64 {
        self.opened_ns
    }
    fn seen_ns(&self) -> u64 {
        self.seen_ns
    }
    fn events(&self) -> u32 {
        self.events
    }
    fn backend(&self) -> u32 {
        self.backend_id()
    }
    fn timeout_ns(&self, protocol: u8) -> u64 {
        idle_timeout_ns(protocol, self.events)
    }
}

impl Tracked for Nat {
    fn opened_ns(&self) -> u64 {
        self.opened_ns
    }
    fn seen_ns(&self) -> u64 {
        self.seen_ns
    }
    fn events(&self) -> u32 {
        self.events
    }
    fn backend(&self) -> u32 {
        self.backend
    }
    fn timeout_ns(&self, protocol: u8) -> u64 {
        translation_timeout_ns(protocol, self.events)
    }
}

/// What flows' fates depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Terms {
    /// Backends whose flows go on, as of [`now_ns`](Self::now_ns).
    pub(super) alive: BTreeSet<u32>,
    /// Of backends whose service says so: how long an established connection may be idle.
    pub(super) idle_ns: BTreeMap<u32, u64>,
    /// The clock.
    pub(super) now_ns: u64,
}

/// The part of a table's key that a flow's fate depends on.
pub(super) trait Keyed {
    /// IP protocol number.
    fn protocol(&self) -> u8;
}

impl Keyed for FlowKey {
    fn protocol(&self) -> u8 {
        self.vip.protocol()
    }
}

impl Keyed for NatKey {
    fn protocol(&self) -> u8 {
        Self::protocol(self)
    }
}

/// The longest between two ticks of the clock that flows' times may be read from, in nanoseconds (`CONFIG_HZ` is 100 at least).
const TICK_NS: u64 = 10_000_000;

/// What becomes of a flow of this protocol. The backend of one that began after the terms were made may be younger than they are, too.
pub(super) fn fate(protocol: u8, flow: &impl Tracked, terms: &Terms) -> Fate {
    let idle_ns = terms.now_ns.saturating_sub(flow.seen_ns());
    let age_ns = terms.now_ns.saturating_sub(flow.opened_ns());
    let usual_ns = flow.timeout_ns(protocol);
    let limit_ns = match terms.idle_ns.get(&flow.backend()) {
        Some(limit_ns) if usual_ns == ESTABLISHED_TIMEOUT_NS => *limit_ns,
        _ => usual_ns,
    };
    if is_closed(flow.events()) {
        if idle_ns > usual_ns { Fate::Closed } else { Fate::Keep }
    } else if !is_outgoing(flow.events()) && !terms.alive.contains(&flow.backend()) && age_ns > TICK_NS {
        Fate::BackendGone
    } else if idle_ns > limit_ns {
        Fate::Idle
    } else {
        Fate::Keep
    }
}

#[cfg(test)]
mod tests {
    use mesh_ebpf::abi::flow_event::{ACK, CLIENT_FIN, OUTGOING, RESET, SYN, TASK_FIN};
    use mesh_ebpf::abi::protocol::TCP;
    use mesh_ebpf::conntrack::{
        CLOSED_TIMEOUT_NS, HALF_OPEN_TIMEOUT_NS, OUTGOING_BRIEF_TIMEOUT_NS, OUTGOING_TIMEOUT_NS, TIME_WAIT_NS,
    };

    use super::*;

    #[track_caller]
    fn check(events: u32, is_backend_alive: bool, idle_ns: u64, expected: Fate) {
        let flow = Flow { seen_ns: 1000, events, backend: 7, ..Flow::default() };
        let alive = if is_backend_alive { BTreeSet::from([7]) } else { BTreeSet::new() };
        let seen = fate(TCP, &flow, &Terms { alive, now_ns: 1000 + idle_ns, ..Terms::default() });
        assert_eq!(seen, expected, "events {events:#b}, alive {is_backend_alive}, idle for {idle_ns} ns");
    }

    #[test]
    fn flows_go_when_their_time_has_come_and_not_before() {
        check(SYN, true, HALF_OPEN_TIMEOUT_NS, Fate::Keep);
        check(SYN, true, HALF_OPEN_TIMEOUT_NS + 1, Fate::Idle);
        check(SYN | ACK, true, ESTABLISHED_TIMEOUT_NS, Fate::Keep);
        check(SYN | ACK, true, ESTABLISHED_TIMEOUT_NS + 1, Fate::Idle);
        check(SYN | ACK | RESET, true, CLOSED_TIMEOUT_NS, Fate::Keep);
        check(SYN | ACK | RESET, true, CLOSED_TIMEOUT_NS + 1, Fate::Closed);
        check(SYN | ACK | CLIENT_FIN | TASK_FIN, false, CLOSED_TIMEOUT_NS + 1, Fate::Closed);
        check(SYN | ACK, false, TICK_NS + 1, Fate::BackendGone);
        check(SYN | ACK | RESET, false, 0, Fate::Keep);
    }

    #[test]
    fn a_flow_that_began_after_the_terms_may_have_a_backend_that_they_dont_know() {
        let flow =
            |opened_ns| Flow { opened_ns, seen_ns: opened_ns, events: SYN, backend: 7, ..Flow::default() };
        let now_ns = 5 * TICK_NS;
        let terms = Terms { now_ns, ..Terms::default() };
        for (opened_ns, expected) in [
            (now_ns + 1, Fate::Keep),
            (now_ns - TICK_NS, Fate::Keep),
            (now_ns - TICK_NS - 1, Fate::BackendGone),
        ] {
            assert_eq!(fate(TCP, &flow(opened_ns), &terms), expected, "opened at {opened_ns} of {now_ns}");
        }
    }

    #[test]
    fn a_translation_is_remembered_as_long_as_its_task_remembers_the_connection() {
        let fate_of = |events, idle_ns| {
            let nat = Nat { seen_ns: 1000, events, backend: 7, ..Nat::default() };
            fate(TCP, &nat, &Terms { now_ns: 1000 + idle_ns, ..Terms::default() })
        };
        let closed = SYN | ACK | CLIENT_FIN | TASK_FIN;
        assert_eq!(fate_of(closed, TIME_WAIT_NS), Fate::Keep);
        assert_eq!(fate_of(closed, TIME_WAIT_NS + 1), Fate::Closed);
        assert_eq!(fate_of(closed | RESET, CLOSED_TIMEOUT_NS + 1), Fate::Closed, "nobody remembers a RST");
    }

    #[test]
    fn a_connection_of_this_nodes_own_has_no_backend_and_lasts() {
        let events = OUTGOING | ACK;
        check(events, false, ESTABLISHED_TIMEOUT_NS + 1, Fate::Keep);
        check(events, false, OUTGOING_TIMEOUT_NS + 1, Fate::Idle);
        check(OUTGOING, false, OUTGOING_BRIEF_TIMEOUT_NS, Fate::Keep);
        check(OUTGOING, false, OUTGOING_BRIEF_TIMEOUT_NS + 1, Fate::Idle);
    }

    #[test]
    fn a_service_may_end_idle_connections_earlier() {
        let terms = |idle_ns: u64| Terms {
            alive: BTreeSet::from([7]),
            idle_ns: BTreeMap::from([(7, 50)]),
            now_ns: 1000 + idle_ns,
        };
        let flow = |events| Flow { seen_ns: 1000, events, backend: 7, ..Flow::default() };
        assert_eq!(fate(TCP, &flow(SYN | ACK), &terms(50)), Fate::Keep);
        assert_eq!(fate(TCP, &flow(SYN | ACK), &terms(51)), Fate::Idle);
        assert_eq!(fate(TCP, &flow(SYN), &terms(51)), Fate::Keep, "half-open ones have a time of their own");
    }

    #[test]
    fn a_packet_seen_after_the_clock_was_read_keeps_its_flow() {
        let flow = Flow { seen_ns: 2000, events: SYN, ..Flow::default() };
        let terms = Terms { alive: BTreeSet::from([0]), now_ns: 1000, ..Terms::default() };
        assert_eq!(fate(TCP, &flow, &terms), Fate::Keep);
    }
}
