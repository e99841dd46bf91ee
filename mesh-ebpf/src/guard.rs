//! The guard against floods of SYNs: how many of them are remembered, and for how long what was not
//! is honoured.
//!
//! Remembering a SYN costs several times what forwarding it costs, and the table of flows has an
//! end. So each CPU remembers flows at a rate ([`crate::abi::Config::syn_guard_rate`]). A SYN
//! beyond it is forwarded all the same, to a backend that its addresses and ports name
//! ([`crate::select::Selection::ByFlowHash`]), and nothing is written. The client's ACK names the
//! same backend, and its flow is remembered then, out of a bucket of its own.
//!
//! That holds for a while after the last SYN that was not remembered. Outside of it a packet
//! without a flow is refused.

use crate::abi::TokenBucket;

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;
/// How often a bucket is filled, about: two divisions.
const FILL_NS: u64 = 1 << 23;
/// How far [`crate::abi::names::SYN_GUARD_FIRED`] may be behind: its line of memory is read by all
/// CPUs with each SYN.
pub const FIRED_STEP_NS: u64 = 1 << 26;
/// How long after the last SYN that was not remembered backends are chosen by addresses and ports
/// alone, for SYNs that are remembered too: the same SYN may have come before, unremembered, and
/// its answer be on its way. Within this time a client repeats it three times.
pub const HASHED_SELECTION_NS: u64 = 8 * SECOND_NS;
/// How long after it a packet without a flow may belong to a connection: as long as an unconfirmed
/// flow would be remembered.
pub const HONOURED_NS: u64 = crate::conntrack::HALF_OPEN_TIMEOUT_NS;
/// The usual rate, as that of Katran: a CPU forwards some millions of packets a second.
pub const RATE: u32 = 100_000;

/// The most that a bucket holds: what a quarter of a second gives.
#[inline(always)]
const fn capacity(rate: u32) -> u32 {
    if rate < 4 { 1 } else { rate / 4 }
}

/// Takes a token out of a bucket that gets `rate` of them a second; `false` if there is none.
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

/// Adds the tokens of the time that has passed. Time that is no whole token stays for the next.
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
        /// Over any time no more than the rate gives, and what a full bucket holds.
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
