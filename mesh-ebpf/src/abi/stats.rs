//! Counters of traffic, flows and loads. Counters only grow.

use super::DropReason;
use super::closed_list::closed_list;
use super::layout::abi_struct;

closed_list! {
    /// Which way a packet goes; the number is the index of the counter.
    pub enum Direction: u8 {
        /// From the client to the task.
        Request = 0 => "request",
        /// From the task to the client.
        Reply = 1 => "reply",
    }
    /// The direction as the metric's label `direction`.
    name: label;
}

abi_struct! {
    /// Packets and bytes (layer 3) of one direction.
    pub struct Traffic [16] {
        /// The number of packets.
        pub packets: u64,
        /// The number of bytes, from the IP header on.
        pub bytes: u64,
    }
}

abi_struct! {
    /// Per-CPU entry of [`super::names::BACKEND_STATS`], by backend id; counted at the ingress
    /// node.
    pub struct BackendStats [72] {
        /// Traffic from clients to the task.
        pub request: Traffic,
        /// Traffic from the task to clients.
        pub reply: Traffic,
        /// Flows assigned to the backend.
        pub opened: u64,
        /// Flows seen to end by both FINs or a RST, and flows replaced by a new one. Evicted and
        /// idle flows are not counted here.
        pub closed: u64,
        /// Handshakes that the task answered with a RST.
        pub refused: u64,
        /// Handshakes that the task left unanswered until the client retransmitted its SYN.
        pub unanswered: u64,
        /// Handshakes that the task answered. For flows whose task's node answers the client
        /// directly, it counts those that the client confirmed.
        pub answered: u64,
    }
}

abi_struct! {
    /// Per-CPU entry of [`super::names::FRONTEND_STATS`], by [`super::Service::index`].
    pub struct FrontendStats [64] {
        /// Traffic from clients to the task.
        pub request: Traffic,
        /// Traffic from the task to clients.
        pub reply: Traffic,
        /// New flows that got a backend.
        pub opened: u64,
        /// New flows refused because no backend was left.
        pub no_backend: u64,
        /// SYNs that were forwarded without a flow, as they exceeded the guard's rate: see
        /// [`crate::guard`].
        pub unremembered: u64,
        /// Padding; always zero.
        pub reserved: u64,
    }
}

abi_struct! {
    /// Entry of [`super::names::LIVE`], by backend id, shared by all CPUs; only programs write it,
    /// atomically. Live connections are `max(opened − closed − drift, 0)`, see
    /// [`super::names::LIVE_DRIFT`].
    pub struct Live [16] {
        /// Flows assigned to the backend.
        pub opened: u64,
        /// Flows of the backend that were seen to end.
        pub closed: u64,
    }
}

abi_struct! {
    /// Entry of [`super::names::LOADS`], by backend id: the newest load known on this node. The
    /// agent writes the loads of its own backends and those of idle ones that managers report;
    /// programs write what replies carry.
    pub struct BackendLoad [16] {
        /// When the load was measured or received, ns of the monotonic clock; 0: never.
        pub seen_ns: u64,
        /// The load from 1 (idle) to 127 (saturated); 0: not known.
        pub load: u32,
        /// Padding; always zero.
        pub reserved: u32,
    }
}

/// A load older than this, in nanoseconds, is ignored.
pub const LOAD_MAX_AGE_NS: u64 = 5_000_000_000;

/// A load that was written less than this long ago, in nanoseconds, is not written again.
const REWRITE_AGE_NS: u64 = 10_000_000;

impl BackendLoad {
    /// Whether the entry held the same `load` a moment before `now_ns`, so that writing it again
    /// can be skipped. Replies come by the thousands, and each write takes the cache line away from
    /// the other CPUs.
    #[inline(always)]
    pub const fn has_just(&self, load: u32, now_ns: u64) -> bool {
        self.load == load && now_ns.saturating_sub(self.seen_ns) < REWRITE_AGE_NS
    }

    /// The load, if it is known and at most [`LOAD_MAX_AGE_NS`] old at `now_ns`.
    #[inline(always)]
    pub const fn fresh(&self, now_ns: u64) -> Option<u32> {
        if self.load == 0 || now_ns.saturating_sub(self.seen_ns) > LOAD_MAX_AGE_NS {
            None
        } else {
            Some(self.load)
        }
    }
}

impl Live {
    /// The number of live connections, corrected by the surplus that the last recount found. Never
    /// negative.
    #[inline(always)]
    pub const fn count(&self, drift: i64) -> u64 {
        let tracked = self.opened.wrapping_sub(self.closed).cast_signed();
        let count = tracked.wrapping_sub(drift);
        if count < 0 { 0 } else { count.cast_unsigned() }
    }
}

/// The index in [`super::names::DROPS`] of a reason and direction.
#[inline(always)]
pub const fn drop_index(reason: DropReason, direction: Direction) -> u32 {
    (reason as u32) << 1 | direction as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_written_when_it_changes_or_ages() {
        let written = BackendLoad { seen_ns: 1_000_000_000, load: 50, reserved: 0 };
        assert!(written.has_just(50, 1_009_999_999), "the same, moments ago");
        assert!(!written.has_just(51, 1_000_000_000), "another");
        assert!(!written.has_just(50, 1_010_000_000), "the same, but older");
    }

    #[test]
    fn live_count_is_never_negative() {
        let live = Live { opened: 5, closed: 3 };
        assert_eq!(live.count(0), 2);
        assert_eq!(live.count(1), 1, "drift is taken off");
        assert_eq!(live.count(9), 0, "more drift than flows");
        assert_eq!(Live { opened: 1, closed: 3 }.count(0), 0, "more closed than opened");
        assert_eq!(Live { opened: 1, closed: 3 }.count(-4), 2, "a recount found more than was counted");
    }
}
