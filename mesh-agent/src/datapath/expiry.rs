//! Decides when the sweep removes a flow or a translation: a closed one after a short linger, an
//! idle one after its timeout (its service's, if it sets one), one whose backend is gone at once.
//!
//! Pure: the clock and the live backends come in as [`ExpiryInputs`].

use std::collections::{BTreeMap, BTreeSet};

use mesh_ebpf::abi::{Activity, Flow, FlowKey, Nat, NatKey};
use mesh_ebpf::conntrack::{
    ESTABLISHED_TIMEOUT_NS, idle_timeout_ns, is_closed, is_outgoing, translation_timeout_ns,
};

/// Whether the sweep removes a flow, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlowExpiry {
    /// The flow stays in its table.
    Keep,
    /// Both sides closed the connection, or one reset it, and the linger is over.
    Closed,
    /// No packet of the flow was seen for longer than its timeout.
    Idle,
    /// The backend is no longer in the mesh table.
    BackendGone,
}

/// A flow or translation, as [`expiry`] reads it.
pub(super) trait Expires: Activity {
    /// The backend's id.
    fn backend(&self) -> u32;
    /// How long the entry is kept after its last packet.
    fn timeout_ns(&self, protocol: u8) -> u64;
}

impl Expires for Flow {
    fn backend(&self) -> u32 {
        self.backend_id()
    }
    fn timeout_ns(&self, protocol: u8) -> u64 {
        idle_timeout_ns(protocol, self.events)
    }
}

impl Expires for Nat {
    fn backend(&self) -> u32 {
        self.backend
    }
    fn timeout_ns(&self, protocol: u8) -> u64 {
        translation_timeout_ns(protocol, self.events)
    }
}

/// What [`expiry`] decides by: the time, the live backends and their idle timeouts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ExpiryInputs {
    /// Backends that are active or draining, as of [`now_ns`](Self::now_ns).
    pub(super) alive: BTreeSet<u32>,
    /// Idle timeout of established connections, by backend, where the service sets one.
    pub(super) idle_ns: BTreeMap<u32, u64>,
    /// The time of the decision, ns of the monotonic clock.
    pub(super) now_ns: u64,
}

/// A key that names the IP protocol of its flow.
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

/// The longest time between two ticks of the coarse clock that programs read flows' times from, in
/// nanoseconds (`CONFIG_HZ` is 100 at least).
const TICK_NS: u64 = 10_000_000;

/// Decides whether the sweep removes a flow of this IP protocol. A flow that began after `terms`
/// was built is kept: its backend may be newer than `terms` as well.
pub(super) fn expiry(protocol: u8, flow: &impl Expires, terms: &ExpiryInputs) -> FlowExpiry {
    let idle_ns = terms.now_ns.saturating_sub(flow.seen_ns());
    let age_ns = terms.now_ns.saturating_sub(flow.opened_ns());
    let usual_ns = flow.timeout_ns(protocol);
    let limit_ns = match terms.idle_ns.get(&flow.backend()) {
        Some(limit_ns) if usual_ns == ESTABLISHED_TIMEOUT_NS => *limit_ns,
        _ => usual_ns,
    };
    if is_closed(flow.events()) {
        if idle_ns > usual_ns { FlowExpiry::Closed } else { FlowExpiry::Keep }
    } else if !is_outgoing(flow.events()) && !terms.alive.contains(&flow.backend()) && age_ns > TICK_NS {
        FlowExpiry::BackendGone
    } else if idle_ns > limit_ns {
        FlowExpiry::Idle
    } else {
        FlowExpiry::Keep
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
    fn check(events: u32, is_backend_alive: bool, idle_ns: u64, expected: FlowExpiry) {
        let flow = Flow { seen_ns: 1000, events, backend: 7, ..Flow::default() };
        let alive = if is_backend_alive { BTreeSet::from([7]) } else { BTreeSet::new() };
        let seen =
            expiry(TCP, &flow, &ExpiryInputs { alive, now_ns: 1000 + idle_ns, ..ExpiryInputs::default() });
        assert_eq!(seen, expected, "events {events:#b}, alive {is_backend_alive}, idle for {idle_ns} ns");
    }

    #[test]
    fn flows_go_when_their_time_has_come_and_not_before() {
        check(SYN, true, HALF_OPEN_TIMEOUT_NS, FlowExpiry::Keep);
        check(SYN, true, HALF_OPEN_TIMEOUT_NS + 1, FlowExpiry::Idle);
        check(SYN | ACK, true, ESTABLISHED_TIMEOUT_NS, FlowExpiry::Keep);
        check(SYN | ACK, true, ESTABLISHED_TIMEOUT_NS + 1, FlowExpiry::Idle);
        check(SYN | ACK | RESET, true, CLOSED_TIMEOUT_NS, FlowExpiry::Keep);
        check(SYN | ACK | RESET, true, CLOSED_TIMEOUT_NS + 1, FlowExpiry::Closed);
        check(SYN | ACK | CLIENT_FIN | TASK_FIN, false, CLOSED_TIMEOUT_NS + 1, FlowExpiry::Closed);
        check(SYN | ACK, false, TICK_NS + 1, FlowExpiry::BackendGone);
        check(SYN | ACK | RESET, false, 0, FlowExpiry::Keep);
    }

    #[test]
    fn a_flow_that_began_after_the_terms_may_have_a_backend_that_they_dont_know() {
        let flow =
            |opened_ns| Flow { opened_ns, seen_ns: opened_ns, events: SYN, backend: 7, ..Flow::default() };
        let now_ns = 5 * TICK_NS;
        let terms = ExpiryInputs { now_ns, ..ExpiryInputs::default() };
        for (opened_ns, expected) in [
            (now_ns + 1, FlowExpiry::Keep),
            (now_ns - TICK_NS, FlowExpiry::Keep),
            (now_ns - TICK_NS - 1, FlowExpiry::BackendGone),
        ] {
            assert_eq!(expiry(TCP, &flow(opened_ns), &terms), expected, "opened at {opened_ns} of {now_ns}");
        }
    }

    #[test]
    fn a_translation_is_remembered_as_long_as_its_task_remembers_the_connection() {
        let expiry_of = |events, idle_ns| {
            let nat = Nat { seen_ns: 1000, events, backend: 7, ..Nat::default() };
            expiry(TCP, &nat, &ExpiryInputs { now_ns: 1000 + idle_ns, ..ExpiryInputs::default() })
        };
        let closed = SYN | ACK | CLIENT_FIN | TASK_FIN;
        assert_eq!(expiry_of(closed, TIME_WAIT_NS), FlowExpiry::Keep);
        assert_eq!(expiry_of(closed, TIME_WAIT_NS + 1), FlowExpiry::Closed);
        assert_eq!(
            expiry_of(closed | RESET, CLOSED_TIMEOUT_NS + 1),
            FlowExpiry::Closed,
            "nobody remembers a RST"
        );
    }

    #[test]
    fn a_connection_of_this_nodes_own_has_no_backend_and_lasts() {
        let events = OUTGOING | ACK;
        check(events, false, ESTABLISHED_TIMEOUT_NS + 1, FlowExpiry::Keep);
        check(events, false, OUTGOING_TIMEOUT_NS + 1, FlowExpiry::Idle);
        check(OUTGOING, false, OUTGOING_BRIEF_TIMEOUT_NS, FlowExpiry::Keep);
        check(OUTGOING, false, OUTGOING_BRIEF_TIMEOUT_NS + 1, FlowExpiry::Idle);
    }

    #[test]
    fn a_service_may_end_idle_connections_earlier() {
        let terms = |idle_ns: u64| ExpiryInputs {
            alive: BTreeSet::from([7]),
            idle_ns: BTreeMap::from([(7, 50)]),
            now_ns: 1000 + idle_ns,
        };
        let flow = |events| Flow { seen_ns: 1000, events, backend: 7, ..Flow::default() };
        assert_eq!(expiry(TCP, &flow(SYN | ACK), &terms(50)), FlowExpiry::Keep);
        assert_eq!(expiry(TCP, &flow(SYN | ACK), &terms(51)), FlowExpiry::Idle);
        assert_eq!(
            expiry(TCP, &flow(SYN), &terms(51)),
            FlowExpiry::Keep,
            "half-open ones have a time of their own"
        );
    }

    #[test]
    fn a_packet_seen_after_the_clock_was_read_keeps_its_flow() {
        let flow = Flow { seen_ns: 2000, events: SYN, ..Flow::default() };
        let terms = ExpiryInputs { alive: BTreeSet::from([0]), now_ns: 1000, ..ExpiryInputs::default() };
        assert_eq!(expiry(TCP, &flow, &terms), FlowExpiry::Keep);
    }
}
