//! A task's drain: its live flows have a while to end before it is asked to stop.
//!
//! Invariants: pure; a drain ends: when its flows have ended, or with its limit, which counts from the moment the agent was told to stop
//! the task, managers or no managers. Flows that began after every node knew of the drain are not waited for: they came because no other
//! backend was there.
//!
//! Left to others: counting flows ([`super::network`]).

use std::time::{Duration, Instant};

use mesh_state::ids::BackendId;
use mesh_state::task::{Assignment, Drain};

use super::network::Draining;

/// How far a task's drain is.
#[derive(Debug, Default)]
pub(super) enum DrainStage {
    /// It is not to stop.
    #[default]
    Ahead,
    /// Its flows end.
    Underway(Progress),
    /// It may be stopped.
    Over,
}

/// How often flows are counted.
pub(super) const COUNT_INTERVAL: Duration = Duration::from_millis(100);
/// For so long no flow must go on: one may be on its way from a node that had just selected the task.
const QUIET: Duration = Duration::from_millis(250);

/// Where a drain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    begun: Instant,
    /// Since when every node knows.
    announced: Option<Instant>,
    /// Since when no flow goes on.
    quiet: Option<Instant>,
}

/// What a drain waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: the task may be stopped.
    Over,
    /// Nothing more, though this many flows go on: its limit has passed.
    Late {
        /// How many.
        flows: u64,
    },
    /// Flows end or the limit passes; look again then.
    Wait {
        /// For how long, unless something changes before.
        pause: Duration,
    },
}

impl Progress {
    /// A drain that begins.
    pub(super) fn begin(now: Instant) -> Self {
        Self { begun: now, announced: None, quiet: None }
    }

    /// What is to be counted; nothing before every node knows.
    pub(super) fn counts(&mut self, now: Instant, assignment: &Assignment) -> Option<Draining> {
        if !assignment.drain.announced {
            return None;
        }
        let since = *self.announced.get_or_insert(now);
        Some(Draining { backends: backends(assignment), since })
    }

    /// What follows from `flows`, the flows that go on, if they could be counted.
    pub(super) fn judge(&mut self, now: Instant, drain: Drain, flows: Option<u64>) -> Verdict {
        let limit = self.begun + Duration::from_secs(drain.limit_s.into());
        if flows == Some(0) {
            let quiet = *self.quiet.get_or_insert(now);
            if now >= quiet + QUIET {
                return Verdict::Over;
            }
        } else {
            self.quiet = None;
        }
        if now >= limit {
            return Verdict::Late { flows: flows.unwrap_or_default() };
        }
        Verdict::Wait { pause: COUNT_INTERVAL.min(limit - now) }
    }
}

/// The task's backends.
pub(super) fn backends(assignment: &Assignment) -> Vec<BackendId> {
    assignment.task.endpoints.iter().map(|endpoint| endpoint.backend_id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::worker::tests::assignment;

    const LIMIT: Drain = Drain { announced: true, limit_s: 30 };

    #[test]
    fn a_drain_is_over_once_no_flow_went_on_for_a_moment() {
        let begun = Instant::now();
        let mut progress = Progress::begin(begun);
        let later = |ms| begun + Duration::from_millis(ms);
        let wait = Verdict::Wait { pause: COUNT_INTERVAL };
        assert_eq!(progress.judge(later(0), LIMIT, Some(2)), wait);
        assert_eq!(progress.judge(later(100), LIMIT, Some(0)), wait, "one may be on its way");
        assert_eq!(progress.judge(later(200), LIMIT, Some(1)), wait);
        assert_eq!(progress.judge(later(300), LIMIT, Some(0)), wait);
        assert_eq!(progress.judge(later(549), LIMIT, Some(0)), wait);
        assert_eq!(progress.judge(later(550), LIMIT, Some(0)), Verdict::Over);
    }

    #[test]
    fn a_drain_ends_with_its_limit_whatever_is_known() {
        let begun = Instant::now();
        let mut progress = Progress::begin(begun);
        let just_before = begun + Duration::from_millis(29_950);
        let wait = Verdict::Wait { pause: Duration::from_millis(50) };
        assert_eq!(progress.judge(just_before, LIMIT, None), wait, "nobody could be told");
        let end = begun + Duration::from_secs(30);
        assert_eq!(progress.clone().judge(end, LIMIT, None), Verdict::Late { flows: 0 });
        assert_eq!(progress.judge(end, LIMIT, Some(3)), Verdict::Late { flows: 3 });
        let at_once = Drain { limit_s: 0, ..LIMIT };
        assert_eq!(Progress::begin(begun).judge(begun, at_once, Some(3)), Verdict::Late { flows: 3 });
    }

    #[test]
    fn nothing_is_counted_before_every_node_knows() {
        let begun = Instant::now();
        let mut progress = Progress::begin(begun);
        let mut told = assignment("t");
        assert_eq!(progress.counts(begun, &told), None);
        told.drain.announced = true;
        let announced = begun + Duration::from_millis(40);
        assert_eq!(progress.counts(announced, &told).map(|draining| draining.since), Some(announced));
        let later = announced + Duration::from_secs(1);
        assert_eq!(progress.counts(later, &told).map(|draining| draining.since), Some(announced));
    }
}
