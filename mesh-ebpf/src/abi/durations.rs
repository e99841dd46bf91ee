//! Histograms of durations with bounds at powers of two, shared by programs, agent and proxy.

use super::closed_list::closed_list;
use super::layout::abi_struct;

/// Buckets of a [`Histogram`]; the last one counts durations above all bounds.
pub const BUCKETS: usize = 31;

/// log2 of the lowest bound in nanoseconds: 16 µs.
const LOWEST_BITS: u32 = 14;

abi_struct! {
    /// Per-CPU entry of [`super::names::DURATIONS`].
    pub struct Histogram [256] {
        /// Sum of all durations, in nanoseconds.
        pub sum_ns: u64,
        /// For each bucket, how many durations are above the bound of the bucket before it and not
        /// above its own, [`Histogram::bound_ns`].
        pub buckets: [u64; BUCKETS],
    }
}

impl Histogram {
    /// The index of the bucket that counts a duration; always below [`BUCKETS`].
    #[inline(always)]
    pub const fn bucket(duration_ns: u64) -> usize {
        if duration_ns > Self::bound_ns(BUCKETS - 2) {
            return BUCKETS - 1;
        }
        // A duration that equals a bound belongs to the bucket below it, as in Prometheus.
        let above = (duration_ns.saturating_sub(1) >> LOWEST_BITS) as u32;
        (u32::BITS - above.leading_zeros()) as usize
    }

    /// The upper bound of a bucket in nanoseconds; the last bucket has none, for which the function
    /// returns `u64::MAX`.
    #[inline(always)]
    pub const fn bound_ns(bucket: usize) -> u64 {
        if bucket >= BUCKETS - 1 { u64::MAX } else { 1 << (LOWEST_BITS + bucket as u32) }
    }

    /// Counts a duration.
    pub fn add(&mut self, duration_ns: u64) {
        self.sum_ns = self.sum_ns.wrapping_add(duration_ns);
        self.buckets[Self::bucket(duration_ns)] += 1;
    }

    /// The sum of both histograms.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        self
    }

    /// How many durations the histogram counts.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

closed_list! {
    /// What a histogram of durations measures.
    pub enum Timed: u32 {
        /// Handshakes: from the client's SYN to the task's SYN-ACK, as the ingress node sees them.
        /// Written by the programs.
        Connect = 0 => "connect",
        /// Lifetimes of flows that a packet ended. Written by the programs.
        Flow = 1 => "flow",
        /// Lifetimes of flows that the sweep ended, as they were idle or their backend was gone.
        /// Written by userspace, in the first CPU's histogram.
        Swept = 2 => "swept",
    }
    /// What is timed, in one word: for logs and tests.
    name: name;
}

impl Timed {
    /// The key in [`super::names::DURATIONS`] for the published port with this
    /// [`super::Service::index`].
    #[inline(always)]
    pub const fn key(self, service_index: u32) -> u32 {
        service_index << 2 | self as u32
    }

    /// The [`super::Service::index`] that a key was made from.
    pub const fn service_index(key: u32) -> u32 {
        key >> 2
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_belong_to_the_bucket_below_them() {
        assert_eq!(Histogram::bucket(0), 0);
        assert_eq!(Histogram::bucket(1 << 14), 0, "16 µs");
        assert_eq!(Histogram::bucket((1 << 14) + 1), 1);
        assert_eq!(Histogram::bucket(1 << 15), 1);
        let greatest = Histogram::bound_ns(BUCKETS - 2);
        assert_eq!(greatest, 1 << 43, "two and a half hours");
        assert_eq!(Histogram::bucket(greatest), BUCKETS - 2);
        assert_eq!(Histogram::bucket(greatest + 1), BUCKETS - 1);
        assert_eq!(Histogram::bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn keys_keep_their_parts() {
        for timed in Timed::ALL {
            assert_eq!(Timed::service_index(timed.key(16383)), 16383, "{timed:?}");
        }
        let keys = Timed::ALL.map(|timed| timed.key(5));
        assert!(keys[0] < keys[1] && keys[1] < keys[2], "{keys:?}");
    }

    proptest! {
        /// The oracle searches the bounds one by one.
        #[test]
        fn a_duration_is_in_the_first_bucket_that_holds_it(duration_ns: u64, shift in 0..64_u32) {
            let duration_ns = duration_ns >> shift;
            let expected = (0..BUCKETS).find(|bucket| duration_ns <= Histogram::bound_ns(*bucket));
            prop_assert_eq!(Some(Histogram::bucket(duration_ns)), expected);
            let mut histogram = Histogram::default();
            histogram.add(duration_ns);
            let histogram = histogram.plus(&histogram);
            prop_assert_eq!((histogram.count(), histogram.sum_ns), (2, duration_ns.wrapping_mul(2)));
        }
    }
}
