//! Rate limits. Pure: the time is an argument.
//!
//! Invariant: memory is bounded, however many peers call.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A token bucket: `at_once` in a burst, `a_second` in the long run.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    a_second: f64,
    at_once: f64,
    left: f64,
    counted_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(a_second: u32, at_once: u32, now: Instant) -> Self {
        let at_once = f64::from(at_once);
        Self { a_second: f64::from(a_second), at_once, left: at_once, counted_at: now }
    }

    /// Takes a token; `false` if there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted_at);
        self.left = passed.as_secs_f64().mul_add(self.a_second, self.left).min(self.at_once);
        self.counted_at = self.counted_at.max(now);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// A bucket for each of many callers; the number of callers kept is bounded.
#[derive(Debug)]
pub struct Rates<K> {
    a_second: u32,
    at_once: u32,
    remembered: usize,
    buckets: HashMap<K, Bucket>,
}

impl<K: Hash + Eq + Clone> Rates<K> {
    /// Buckets of no callers yet.
    pub fn new(a_second: u32, at_once: u32, remembered: usize) -> Self {
        Self { a_second, at_once, remembered, buckets: HashMap::new() }
    }

    /// Takes a token of `caller`; `false` if there is none.
    pub fn take(&mut self, caller: &K, now: Instant) -> bool {
        if let Some(bucket) = self.buckets.get_mut(caller) {
            return bucket.take(now);
        }
        if self.buckets.len() >= self.remembered {
            self.forget(now);
        }
        let mut bucket = Bucket::new(self.a_second, self.at_once, now);
        let may = bucket.take(now);
        self.buckets.insert(caller.clone(), bucket);
        may
    }

    /// Makes room: drops buckets that are full again, or else the one that was quiet longest.
    fn forget(&mut self, now: Instant) {
        let refill = Duration::from_secs(u64::from(self.at_once.div_ceil(self.a_second.max(1))));
        self.buckets.retain(|_, bucket| now.saturating_duration_since(bucket.counted_at) < refill);
        if self.buckets.len() < self.remembered {
            return;
        }
        let quietest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.counted_at);
        if let Some(caller) = quietest.map(|(caller, _)| caller.clone()) {
            self.buckets.remove(&caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(2, 3, start);
        assert_eq!([(); 4].map(|()| bucket.take(start)), [true, true, true, false]);
        let later = start + Duration::from_millis(500);
        assert_eq!([(); 2].map(|()| bucket.take(later)), [true, false]);
        let much_later = start + Duration::from_mins(1);
        assert_eq!([(); 4].map(|()| bucket.take(much_later)), [true, true, true, false], "it holds no more");
        assert!(!bucket.take(start), "a clock that goes back fills nothing");
    }

    #[test]
    fn callers_are_counted_apart_and_few_are_remembered() {
        let start = Instant::now();
        let mut rates = Rates::new(1, 1, 100);
        assert!(rates.take(&0, start) && !rates.take(&0, start) && rates.take(&1, start));
        for caller in 0..10_000 {
            rates.take(&caller, start + Duration::from_micros(caller));
        }
        assert!(rates.buckets.len() <= 100, "{} are remembered", rates.buckets.len());
    }
}
