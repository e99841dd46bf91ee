//! Following a flow through its tables: noting events, promoting.

use crate::abi::{Direction, Flow, Nat, flow_event};
use crate::conntrack;
use crate::lookups::{Entry, FlowTable};
use crate::parse::tcp::Flags;

/// A flow as found in its tables.
pub(super) struct Tracked<V, E> {
    /// A copy of it.
    pub(super) value: V,
    /// The live entry.
    pub(super) entry: E,
    /// Whether it is in the established table.
    pub(super) is_established: bool,
}

/// What a segment did to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    /// It was this segment that ended it.
    pub(super) closes: bool,
    /// It is the first to show that the task took the connection.
    pub(super) answers: bool,
    /// It is the task's refusal of the connection.
    pub(super) refuses: bool,
}

/// Values that hold events.
pub(super) trait Events: Copy {
    /// The events seen so far.
    fn events(&self) -> u32;
    /// What a segment that tells `added` adds to them.
    fn made_of(&self, added: u32) -> u32;
    /// The same flow with these events.
    fn with_events(self, events: u32, seen_ns: u64) -> Self;
}

impl Events for Flow {
    #[inline(always)]
    fn events(&self) -> u32 {
        self.events
    }

    #[inline(always)]
    fn made_of(&self, added: u32) -> u32 {
        conntrack::at_ingress(self.events, added)
    }

    #[inline(always)]
    fn with_events(self, events: u32, seen_ns: u64) -> Self {
        Self { seen_ns, events, ..self }
    }
}

impl Events for Nat {
    #[inline(always)]
    fn events(&self) -> u32 {
        self.events
    }

    #[inline(always)]
    fn made_of(&self, added: u32) -> u32 {
        added
    }

    #[inline(always)]
    fn with_events(self, events: u32, seen_ns: u64) -> Self {
        Self { seen_ns, events, ..self }
    }
}

/// The flow with this key, the established one first.
#[inline(always)]
pub(super) fn find<K, V: Events, T: FlowTable<K, V>>(table: &T, key: &K) -> Option<Tracked<V, T::Entry>> {
    if let Some(entry) = table.established(key) {
        return Some(Tracked { value: entry.get(), entry, is_established: true });
    }
    let entry = table.half_open(key)?;
    Some(Tracked { value: entry.get(), entry, is_established: false })
}

/// Notes a segment of the flow, and promotes it with the first packet by which the client confirms it.
#[inline(always)]
pub(super) fn note<K, V: Events, T: FlowTable<K, V>>(
    table: &T,
    key: &K,
    flow: &Tracked<V, T::Entry>,
    direction: Direction,
    flags: Flags,
    now_ns: u64,
) -> Noted {
    let added = flow.value.made_of(conntrack::events_of(direction, flags));
    let seen = flow.value.events();
    flow.entry.touch(now_ns);
    if added & !seen == 0 && flow.is_established {
        return Noted { closes: false, answers: false, refuses: false };
    }
    let before = flow.entry.add_events(added);
    if !flow.is_established && conntrack::is_established(added) {
        table.promote(key, &flow.value.with_events(before | added, now_ns));
    }
    Noted {
        closes: conntrack::closes(before, added),
        answers: conntrack::answers(before, added),
        refuses: matches!(direction, Direction::Reply)
            && flags.has(Flags::RST)
            && conntrack::is_refusal(before),
    }
}

/// Marks the flow as ended; returns the events it had before.
#[inline(always)]
pub(super) fn reset<V, E: Entry<V>>(entry: &E) -> u32 {
    entry.add_events(flow_event::RESET)
}
