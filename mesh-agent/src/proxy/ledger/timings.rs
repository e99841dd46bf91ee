//! Histograms that many threads add to, with the same buckets as the kernel programs'.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_ebpf::abi::{BUCKETS, Histogram};
use serde::{Deserialize, Serialize};

/// A histogram of durations.
#[derive(Debug, Default)]
pub(super) struct Timings {
    sum_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// The contents of a histogram at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TimingFigures {
    sum_ns: u64,
    buckets: [u64; BUCKETS],
}

impl Timings {
    pub(super) fn resumed(before: &TimingFigures) -> Self {
        Self { sum_ns: before.sum_ns.into(), buckets: before.buckets.map(AtomicU64::new) }
    }

    /// Adds a duration.
    pub(super) fn add(&self, duration: Duration) {
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(duration_ns, Ordering::Relaxed);
        self.buckets[Histogram::bucket(duration_ns)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn figures(&self) -> TimingFigures {
        TimingFigures {
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed)),
        }
    }
}

impl From<TimingFigures> for Histogram {
    fn from(TimingFigures { sum_ns, buckets }: TimingFigures) -> Self {
        Self { sum_ns, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_kept_over_a_restart() {
        let before = Timings::default();
        before.add(Duration::from_millis(1));
        let text = serde_json::to_string(&before.figures()).expect("figures can be written");
        let after = Timings::resumed(&serde_json::from_str(&text).expect("and read"));
        after.add(Duration::from_millis(2));
        let histogram = Histogram::from(after.figures());
        assert_eq!((histogram.count(), histogram.sum_ns), (2, 3_000_000));
    }
}
