//! A task's drain: before the task is asked to stop, its live flows get time to end.
//!
//! Invariants: pure; a drain always ends: when its flows have ended, or at its limit, which counts
//! from the moment the agent was told to stop the task, with or without managers. Flows that began
//! after every node knew of the drain are not waited for: they came because no other backend was
//! there.
//!
//! Left to others: counting flows ([`super::network`]).

use std::time::{Duration, Instant};

use mesh_state::ids::BackendId;
use mesh_state::task::{Assignment, Drain};

use super::network::Draining;

/// How far a task's drain is.
#[derive(Debug, Default)]
pub(super) enum DrainStage {
    /// The task is not to stop.
    #[default]
    Ahead,
    /// The drain waits for flows to end.
    Underway(DrainProgress),
    /// The task may be stopped.
    Over,
}

/// How often flows are counted.
pub(super) const COUNT_INTERVAL: Duration = Duration::from_millis(100);
/// How long the number of flows must be zero: a SYN may be on its way from a node that had just
/// selected the task.
const QUIET: Duration = Duration::from_millis(250);

/// The times of a drain's steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DrainProgress {
    begun: Instant,
    /// When every node had learned of the drain.
    announced: Option<Instant>,
    /// Since when there are no flows.
    quiet: Option<Instant>,
}

/// What to do next in a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DrainVerdict {
    /// Stop the task: its flows have ended.
    Over,
    /// Stop the task at its limit, though this many flows go on.
    Late {
        /// The number of flows that go on.
        flows: u64,
    },
    /// Wait for flows or the limit; judge again after the pause.
    Wait {
        /// The pause, which ends early if something changes.
        pause: Duration,
    },
}

impl DrainProgress {
    /// A drain that begins at `now`.
    pub(super) fn begin(now: Instant) -> Self {
        Self { begun: now, announced: None, quiet: None }
    }

    /// The flows to count of a task whose first process is `pid`; `None` before every node knows of
    /// the drain.
    pub(super) fn counts(&mut self, now: Instant, assignment: &Assignment, pid: u32) -> Option<Draining> {
        if !assignment.drain.announced {
            return None;
        }
        let since = *self.announced.get_or_insert(now);
        Some(Draining {
            task_id: assignment.task.id.clone(),
            pid,
            backends: backends(assignment),
            networks: assignment.networks.iter().map(|network| network.address).collect(),
            since,
        })
    }

    /// Judges the drain by `flows`, the number of flows that go on, if they could be counted.
    pub(super) fn judge(&mut self, now: Instant, drain: Drain, flows: Option<u64>) -> DrainVerdict {
        let limit = self.begun + Duration::from_secs(drain.limit_s.into());
        if flows == Some(0) {
            let quiet = *self.quiet.get_or_insert(now);
            if now >= quiet + QUIET {
                return DrainVerdict::Over;
            }
        } else {
            self.quiet = None;
        }
        if now >= limit {
            return DrainVerdict::Late { flows: flows.unwrap_or_default() };
        }
        DrainVerdict::Wait { pause: COUNT_INTERVAL.min(limit - now) }
    }
}

/// The task's backends: of published ports, and of virtual IPs.
pub(super) fn backends(assignment: &Assignment) -> Vec<BackendId> {
    assignment.task.backend_ids().collect()
}

#[cfg(test)]
mod tests {
    use mesh_state::network::Attachment;

    use super::*;
    use crate::task::worker::tests::assignment;

    const LIMIT: Drain = Drain { announced: true, limit_s: 30 };

    #[test]
    fn a_drain_is_over_once_no_flow_went_on_for_a_moment() {
        let begun = Instant::now();
        let mut progress = DrainProgress::begin(begun);
        let later = |ms| begun + Duration::from_millis(ms);
        let wait = DrainVerdict::Wait { pause: COUNT_INTERVAL };
        assert_eq!(progress.judge(later(0), LIMIT, Some(2)), wait);
        assert_eq!(progress.judge(later(100), LIMIT, Some(0)), wait, "one may be on its way");
        assert_eq!(progress.judge(later(200), LIMIT, Some(1)), wait);
        assert_eq!(progress.judge(later(300), LIMIT, Some(0)), wait);
        assert_eq!(progress.judge(later(549), LIMIT, Some(0)), wait);
        assert_eq!(progress.judge(later(550), LIMIT, Some(0)), DrainVerdict::Over);
    }

    #[test]
    fn a_drain_ends_with_its_limit_whatever_is_known() {
        let begun = Instant::now();
        let mut progress = DrainProgress::begin(begun);
        let just_before = begun + Duration::from_millis(29_950);
        let wait = DrainVerdict::Wait { pause: Duration::from_millis(50) };
        assert_eq!(progress.judge(just_before, LIMIT, None), wait, "nobody could be told");
        let end = begun + Duration::from_secs(30);
        assert_eq!(progress.clone().judge(end, LIMIT, None), DrainVerdict::Late { flows: 0 });
        assert_eq!(progress.judge(end, LIMIT, Some(3)), DrainVerdict::Late { flows: 3 });
        let at_once = Drain { limit_s: 0, ..LIMIT };
        assert_eq!(
            DrainProgress::begin(begun).judge(begun, at_once, Some(3)),
            DrainVerdict::Late { flows: 3 }
        );
    }

    #[test]
    fn nothing_is_counted_before_every_node_knows() {
        let begun = Instant::now();
        let mut progress = DrainProgress::begin(begun);
        let mut told = assignment("t");
        assert_eq!(progress.counts(begun, &told, 7), None);
        told.drain.announced = true;
        let announced = begun + Duration::from_millis(40);
        assert_eq!(progress.counts(announced, &told, 7).map(|draining| draining.since), Some(announced));
        let later = announced + Duration::from_secs(1);
        assert_eq!(progress.counts(later, &told, 7).map(|draining| draining.since), Some(announced));
    }

    #[test]
    fn flows_to_virtual_ips_are_waited_for_too() {
        let mut told = assignment("t");
        let network = |backend_id| Attachment { network_id: "app".into(), address: None, backend_id };
        assert!(!told.task.is_in_mesh(), "no port and no network: it stops at once");
        told.task.attachments = vec![network(None)];
        assert!(told.task.is_in_mesh(), "its names are to be withdrawn first");
        assert_eq!(backends(&told), []);
        told.task.attachments.push(network(BackendId::new(7)));
        assert_eq!(backends(&told), [BackendId::new(7).unwrap()]);
    }
}
