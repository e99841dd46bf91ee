//! A reference to a flow or translation in its table, and the updates that packets make through it.

use core::marker::PhantomData;

use crate::abi::{Activity, Direction, Flow, FlowKey, Nat, Timed, flow_event};
use crate::conntrack;
use crate::lookups::{FlowEntry, FlowTable, Lookups};
use crate::parse::tcp::Flags;
use crate::parse::transport;

/// A flow or translation that was found in its table.
///
/// It doesn't hold the value, which is read where it is needed: a program's stack has 512 bytes.
pub(super) struct FlowRef<V, E> {
    /// The table's handle on the entry.
    pub(super) entry: E,
    /// Whether the flow was established when it was found.
    pub(super) is_established: bool,
    value: PhantomData<V>,
}

impl<V, E: FlowEntry<V>> FlowRef<V, E> {
    #[inline(always)]
    const fn new(entry: E, is_established: bool) -> Self {
        Self { entry, is_established, value: PhantomData }
    }

    /// A copy of the value as it is now.
    #[inline(always)]
    pub(super) fn value(&self) -> V {
        self.entry.get()
    }
}

/// What a segment changed in the state of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transition {
    /// The segment closed the flow.
    pub(super) closes: bool,
    /// The segment is the first that shows that the task accepted the connection.
    pub(super) answers: bool,
    /// The segment is the task's RST that refuses the connection.
    pub(super) refuses: bool,
    /// The segment shows that a flow goes on that was counted as ended.
    pub(super) revives: bool,
}

/// Table values that hold a flow's events.
pub(super) trait Events: Activity {
    /// The events that a packet with the events `added` adds to this value.
    fn events_to_add(&self, added: u32) -> u32;
}

impl Events for Flow {
    #[inline(always)]
    fn events_to_add(&self, added: u32) -> u32 {
        conntrack::at_ingress(self.events, added)
    }
}

impl Events for Nat {
    #[inline(always)]
    fn events_to_add(&self, added: u32) -> u32 {
        added
    }
}

/// Finds the flow or translation with this key.
#[inline(always)]
pub(super) fn find<K, V: Events, T: FlowTable<K, V>>(table: &T, key: &K) -> Option<FlowRef<V, T::Entry>> {
    let (entry, is_established) = table.find(key)?;
    Some(FlowRef::new(entry, is_established))
}

/// A flow that was found in the flow table of `L`.
type FoundFlow<L> = FlowRef<Flow, <<L as Lookups>::Flows as FlowTable<FlowKey, Flow>>::Entry>;

/// Finds the flow with this key, if a client began it.
#[inline(always)]
pub(super) fn find_client_flow<L: Lookups>(lookups: &L, key: &FlowKey) -> Option<FoundFlow<L>> {
    let flow = find(lookups.flows(), key)?;
    if conntrack::is_outgoing(flow.value().events) { None } else { Some(flow) }
}

/// Records a segment of the flow: time, sequence number and events. Moves the entry to the table of
/// its new state.
#[inline(always)]
pub(super) fn record_segment<K, V: Events, T: FlowTable<K, V>>(
    table: &T,
    key: &K,
    flow: &FlowRef<V, T::Entry>,
    direction: Direction,
    header: &transport::Header,
    now_ns: u64,
) -> Transition {
    // One read for all of it: fields that nobody uses are read as well, as other CPUs write them.
    let known = flow.value();
    let (seen, sequence) = (known.events(), known.sequence());
    let idle_ns = now_ns.saturating_sub(known.seen_ns());
    let judgement =
        conntrack::judge(direction, header, &conntrack::FlowState { events: seen, sequence, idle_ns });
    let added = known.events_to_add(judgement.added);
    flow.entry.touch(now_ns);
    if judgement.sequence != sequence {
        flow.entry.set_sequence(judgement.sequence);
    }
    if added & !seen == 0 && judgement.cleared == 0 && flow.is_established {
        return Transition { closes: false, answers: false, refuses: false, revives: false };
    }
    let mut revives = false;
    if judgement.cleared != 0 {
        revives = conntrack::revives(flow.entry.clear_events(judgement.cleared), judgement.cleared);
    }
    let before = flow.entry.add_events(added);
    table.reclassify(key, &flow.entry, flow.is_established, before | added);
    Transition {
        closes: conntrack::closes(before, added),
        answers: conntrack::answers(before, added),
        refuses: matches!(direction, Direction::Reply)
            && header.flags.has(Flags::RST)
            && conntrack::is_refusal(before),
        revives,
    }
}

/// Adds the time since the flow began to a histogram.
#[inline(always)]
pub(super) fn record_duration<L: Lookups>(
    lookups: &L,
    timed: Timed,
    service_index: u32,
    entry: &impl FlowEntry<Flow>,
) {
    let duration_ns = lookups.precise_ns().saturating_sub(entry.get().opened_ns);
    lookups.keep_duration(timed, service_index, duration_ns);
}

/// Marks the flow as reset; returns the events before.
#[inline(always)]
pub(super) fn mark_reset<V, E: FlowEntry<V>>(entry: &E) -> u32 {
    entry.add_events(flow_event::RESET)
}
