//! Whether and when a task that ended, was lost or was moved gets a replacement.
//!
//! Invariants: pure, and stable over time: the same history gives the same decision. A task's own
//! spec says how it is restarted.

use std::time::Duration;

use chrono::TimeDelta;
use mesh_state::Timestamp;
use mesh_state::node::Availability;
use mesh_state::service::Service;
use mesh_state::spec::{RestartCondition, RestartPolicy};
use mesh_state::task::{Task, TaskState};

use super::history;
use crate::feed::snapshot::{ClusterSnapshot, Stored};

/// What follows a task's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartDecision {
    /// It gets a replacement, at once or after the restart delay.
    Replace {
        /// The end of the restart delay, if one applies.
        after: Option<Timestamp>,
    },
    /// It gets none: the policy wants no restart, or its attempts are used up.
    Leave,
}

/// The decision on `task`, the newest task of its slot, which has ended or is not wanted any more.
pub fn decide(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    service: &Service,
    task: &Stored<Task>,
    slot: &[&Stored<Task>],
) -> RestartDecision {
    let policy = policy_of(snapshot, service, task);
    let status = snapshot.status_of(task);
    match policy.condition() {
        RestartCondition::None => return RestartDecision::Leave,
        RestartCondition::OnFailure if status.state == TaskState::Complete => return RestartDecision::Leave,
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    if !history::ended_by_itself(snapshot, task) {
        return RestartDecision::Replace { after: None };
    }
    if let Some(most) = policy.max_attempts.filter(|most| *most > 0) {
        let window = policy.window.filter(|nanos| *nanos > 0).map(Duration::from_nanos);
        let not_before = window.and_then(|window| before(snapshot.ended_at(task), window));
        // The first of these ends was the original task's, not a restart's.
        if history::ends(snapshot, task, slot, not_before) > most {
            return RestartDecision::Leave;
        }
    }
    if left_by_its_node(snapshot, task) {
        return RestartDecision::Replace { after: None };
    }
    // A task that ended before its own delay was over counts as if it had ended at the end of the
    // delay.
    let ended = snapshot.ended_at(task);
    let ended = snapshot.may_start_at(task).map_or(ended, |moment| moment.max(ended)).min(now);
    RestartDecision::Replace { after: after(ended, policy.delay()) }
}

/// How many ended tasks of a slot the restart policy of its newest task counts.
pub fn attempts_counted(snapshot: &ClusterSnapshot, newest: Option<&Task>) -> u64 {
    let spec = newest.and_then(|task| snapshot.spec_of(task));
    let policy = spec.and_then(|spec| spec.task_template.restart_policy.as_ref());
    policy
        .and_then(|policy| policy.max_attempts)
        .filter(|most| *most > 0)
        .map_or(0, |most| most.saturating_add(1))
}

/// `moment` plus `span`; `None` if that overflows.
pub fn after(moment: Timestamp, span: Duration) -> Option<Timestamp> {
    moment.checked_add_signed(TimeDelta::from_std(span).ok()?)
}

fn before(moment: Timestamp, span: Duration) -> Option<Timestamp> {
    moment.checked_sub_signed(TimeDelta::from_std(span).ok()?)
}

fn policy_of(snapshot: &ClusterSnapshot, service: &Service, task: &Task) -> RestartPolicy {
    let spec = snapshot.spec_of(task).unwrap_or(&service.spec);
    spec.task_template.restart_policy.clone().unwrap_or_default()
}

/// Whether a task's node is down, removed or drained; such a task is replaced without the restart
/// delay.
pub(crate) fn left_by_its_node(snapshot: &ClusterSnapshot, task: &Task) -> bool {
    task.node_id.as_ref().is_some_and(|id| {
        snapshot.is_lost(id)
            || snapshot.nodes.get(id).is_some_and(|node| node.spec.availability == Availability::Drain)
    })
}
