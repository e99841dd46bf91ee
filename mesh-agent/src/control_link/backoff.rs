//! How long to wait before the next try: doubling, capped, with jitter so that nodes don't come back in step.
//!
//! Invariant: pure; randomness comes in from the caller.

use std::time::Duration;

use rand::Rng;

/// Doubling waits between `first` and `cap`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits about `first` after the first failure and never more than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, failures: 0 }
    }

    /// The wait after another failure: between half of the doubled step and the whole of it.
    pub fn next<R: Rng + ?Sized>(&mut self, rng: &mut R) -> Duration {
        let step = self.first.saturating_mul(1 << self.failures.min(16)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(rng.random_range(0.5..=1.0))
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_over() {
        let mut rng = rand::rng();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        for expected_ms in [100, 200, 400, 500, 500] {
            let wait = backoff.next(&mut rng);
            let (least, most) = (Duration::from_millis(expected_ms / 2), Duration::from_millis(expected_ms));
            assert!((least..=most).contains(&wait), "expected {least:?}..={most:?}, saw {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= Duration::from_millis(100), "a reset starts over");
    }
}
