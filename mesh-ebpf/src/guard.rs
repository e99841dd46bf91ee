//! The SYN guard: limits how many flows SYNs create, and for how long packets without a flow are
//! accepted afterwards.
//!
//! Creating a flow costs several times as much as forwarding a SYN, and the flow table is finite.
//! So each CPU creates flows for SYNs up to a rate ([`crate::abi::Config::syn_guard_rate`]). It
//! forwards a SYN beyond that rate without writing anything, to the backend that a hash of its
//! addresses and ports selects ([`crate::select::Selection::ByFlowHash`]). The client's ACK selects
//! the same backend, and creates the flow then, with a token from a bucket of its own.
//!
//! It also fires when a new flow evicts a half-open one from the full table: the client of the
//! evicted flow may still send its ACK.
//!
//! The guard accepts packets without a flow for a while after it last fired. Otherwise it refuses
//! them.

use crate::abi::TokenBucket;

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;
/// The least time between two refills of a bucket, as a refill takes two divisions.
const FILL_NS: u64 = 1 << 23;
/// How far [`crate::abi::names::SYN_GUARD_FIRED`] may lag behind: all CPUs read its cache line with
/// each SYN, so it is written seldom.
pub const FIRED_STEP_NS: u64 = 1 << 26;
/// How long after the last SYN without a flow backends are selected by the flow's hash, also for
/// SYNs that create a flow: the same SYN may have come before without creating one, and its answer
/// may be on its way. A client retransmits three times within this time.
pub const HASHED_SELECTION_NS: u64 = 8 * SECOND_NS;
/// How long after the last SYN without a flow a packet without a flow may belong to a connection:
/// the timeout of a half-open flow.
pub const HONOURED_NS: u64 = crate::conntrack::HALF_OPEN_TIMEOUT_NS;
/// The default rate, that of Katran: a CPU forwards some millions of packets a second.
pub const RATE: u32 = 100_000;

/// The capacity of a bucket: what a quarter of a second adds.
#[inline(always)]
const fn capacity(rate: u32) -> u32 {
    if rate < 4 { 1 } else { rate / 4 }
}

/// Takes a token from a bucket that gets `rate` tokens a second; `false` if it is empty.
#[inline(always)]
pub const fn take(bucket: &mut TokenBucket, rate: u32, now_ns: u64) -> bool {
    let elapsed_ns = now_ns.saturating_sub(bucket.filled_ns);
    if elapsed_ns >= FILL_NS {
        fill(bucket, rate, now_ns, elapsed_ns);
    }
    if bucket.left == 0 {
        return false;
    }
    bucket.left -= 1;
    true
}

/// Adds the tokens for the time that has passed. Time that is less than a token counts for the next
/// refill.
#[inline(always)]
const fn fill(bucket: &mut TokenBucket, rate: u32, now_ns: u64, elapsed_ns: u64) {
    let most = capacity(rate);
    if elapsed_ns >= SECOND_NS || rate == 0 {
        (bucket.left, bucket.filled_ns) = (most, now_ns);
        return;
    }
    let fresh = elapsed_ns * rate as u64 / SECOND_NS;
    let left = bucket.left as u64 + fresh;
    bucket.left = if left > most as u64 { most } else { left as u32 };
    bucket.filled_ns += fresh * SECOND_NS / rate as u64;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_left_is_what_time_gave() {
        let mut bucket = TokenBucket::default();
        let now_ns = 5 * SECOND_NS;
        let granted = (0..1000).filter(|_| take(&mut bucket, 100, now_ns)).count();
        assert_eq!(granted, 25, "a quarter of a second's at once");
        assert!(!take(&mut bucket, 100, now_ns + 9_999_999), "the next one is due after 10 ms");
        assert!(take(&mut bucket, 100, now_ns + 10_000_000));
        assert!(!take(&mut bucket, 100, now_ns + 10_000_000));
        assert!(take(&mut bucket, 1, now_ns + 2 * SECOND_NS), "a rate of one");
    }

    #[test]
    fn a_bucket_of_the_future_gives_what_it_holds_and_no_more() {
        let mut bucket = TokenBucket { filled_ns: u64::MAX, left: 1, reserved: 0 };
        assert!(take(&mut bucket, 100_000, SECOND_NS));
        assert!(!take(&mut bucket, 100_000, 2 * SECOND_NS));
    }

    proptest! {
        /// Over any time the bucket grants at most what the rate adds and what a full bucket holds.
        #[test]
        fn the_rate_is_kept(rate in 1_u32..1_000_000, steps in prop::collection::vec((0_u64..40_000_000, 1_u32..3000), 1..60)) {
            let mut bucket = TokenBucket::default();
            let begun_ns = 10 * SECOND_NS;
            let (mut now_ns, mut granted) = (begun_ns, 0_u64);
            for (pause_ns, asked) in steps {
                now_ns += pause_ns;
                for _ in 0..asked {
                    granted += u64::from(take(&mut bucket, rate, now_ns));
                }
            }
            let by_rate = (now_ns - begun_ns) * u64::from(rate) / SECOND_NS;
            prop_assert!(granted <= by_rate + u64::from(capacity(rate)) + 1, "{granted} of {by_rate}");
            prop_assert!(bucket.filled_ns <= now_ns);
        }
    }
}
