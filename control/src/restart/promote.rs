//! Lets a prepared replacement run: after the restart delay, and once the slot's older tasks have stopped or had a minute for it after
//! their drain.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::ids::ServiceId;
use mesh_state::task::{Task, TaskState};
use rand::RngCore;

use super::decide::after;
use crate::drain;
use crate::orchestrator::slots;
use crate::plan::{Action, Plan};
use crate::snapshot::{ClusterSnapshot, Stored};

/// An old task that has not stopped so long after the limit of its drain is not waited for any more.
pub const STOP_WAIT_MAX: Duration = Duration::from_mins(1);

/// Promotes what waits no longer; asks for a pass when the next one's time comes.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let waiting = snapshot.tasks.values().filter(|task| task.desired_state == TaskState::Ready);
    let services: BTreeSet<&ServiceId> = waiting.map(|task| &task.service_id).collect();
    for service in services {
        for tasks in slots::of(snapshot, service).values() {
            let may_run = |task: &&&Stored<Task>| {
                task.desired_state == TaskState::Ready && !snapshot.state_of(task).is_terminal()
            };
            for task in tasks.iter().filter(may_run) {
                promote(now, snapshot, task, tasks, &mut plan);
            }
        }
    }
    plan
}

fn promote(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    task: &Stored<Task>,
    slot: &[&Stored<Task>],
    plan: &mut Plan,
) {
    let delayed_until = task.start_after.filter(|moment| *moment > now);
    let held_until = slot.iter().filter_map(|older| held_until(now, snapshot, older)).max();
    if let Some(moment) = delayed_until.max(held_until) {
        plan.wake_by(moment);
        return;
    }
    let mut value = task.value.clone();
    value.desired_state = TaskState::Running;
    value.start_after = None;
    plan.reasons.push(format!("task {} in slot {} may run", value.id, value.slot));
    plan.actions.push(Action::UpdateTask { task: value, expected: task.mod_revision });
}

/// Until when a task that was asked to stop is waited for.
fn held_until(now: Timestamp, snapshot: &ClusterSnapshot, older: &Task) -> Option<Timestamp> {
    if older.desired_state != TaskState::Shutdown || slots::has_stopped(snapshot, older) {
        return None;
    }
    let asked_at = older.shutdown_at.unwrap_or(older.created_at);
    after(asked_at, STOP_WAIT_MAX + drain::limit(snapshot, older)).filter(|moment| *moment > now)
}
