//! Exponential backoff: each pause is about twice the last, with jitter so that managers don't
//! retry in step.
//!
//! Invariant: pure; randomness comes from the caller.

use std::time::Duration;

use rand::Rng;

/// Exponential backoff between `shortest` and `longest`.
///
/// ```
/// use std::time::Duration;
///
/// use mesh_runtime::backoff::Backoff;
///
/// let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// let first = backoff.pause(&mut rand::rng());
/// assert!(first <= Duration::from_millis(100));
/// backoff.pause(&mut rand::rng()); // up to 200 ms
/// backoff.reset(); // after a success
/// ```
#[derive(Debug, Clone)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// A backoff between `shortest` and `longest`.
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, next: shortest }
    }

    /// The next pause: half of the step fixed, the other half random.
    pub fn pause<R: Rng + ?Sized>(&mut self, rng: &mut R) -> Duration {
        let step = self.next;
        self.next = step.saturating_mul(2).min(self.longest);
        step.mul_f64(rng.random_range(0.5..=1.0))
    }

    /// After a success: the next pause is the shortest again.
    pub fn reset(&mut self) {
        self.next = self.shortest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_fall_back() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));
        let mut rng = rand::rng();
        for step in [50, 100, 200, 400, 400] {
            let pause = backoff.pause(&mut rng);
            let expected = Duration::from_millis(step / 2)..=Duration::from_millis(step);
            assert!(expected.contains(&pause), "expected {expected:?}, saw {pause:?}");
        }
        backoff.reset();
        assert!(backoff.pause(&mut rng) <= Duration::from_millis(50), "a success starts over");
    }
}
