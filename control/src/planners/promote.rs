//! Promotes a prepared replacement to running: after the restart delay, and once the slot's older
//! tasks have stopped.
//!
//! A replacement is prepared (its image pulled, its container made) while its predecessor still
//! drains. This planner turns its desired state from ready to running. It decides from the slot
//! alone: are all older tasks that were asked to stop observed to have stopped, and has the restart
//! delay passed?
//!
//! There is no limit on the wait for an older task, whatever stop grace period its service has:
//! both tasks may write to the same volume, and two databases on one volume are worse than one that
//! starts late. Only a task whose node is down or no member any more isn't waited for. Nothing
//! reports its end, and to wait for it would leave the slot empty for as long as the machine is
//! away.
//!
//! It can't see processes, only what nodes report. An agent that reported a container's end too
//! early would break the rule; agents report what their engine says, and the engine waits for the
//! container's processes. It can't see shared volumes either, so it treats every slot as if it had
//! one: a stop-first update is slower by the old task's stop.
//!
//! Invariant: a task runs only after every older task of its slot that was asked to stop has ended,
//! or is on a lost node.

use std::collections::BTreeSet;

use mesh_state::Timestamp;
use mesh_state::ids::ServiceId;
use mesh_state::task::{Task, TaskState};
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};
use crate::slots;

/// Promotes tasks that have nothing to wait for; asks for a pass when the next restart delay is
/// over.
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
    // The end of the task comes as a status, the loss of its node as a liveness: either wakes the
    // driver.
    if slot.iter().any(|older| is_stopping(snapshot, older)) {
        return;
    }
    if let Some(moment) = snapshot.may_start_at(task).filter(|moment| *moment > now) {
        plan.wake_by(moment);
        return;
    }
    let mut value = task.value.clone();
    value.desired_state = TaskState::Running;
    value.start_after = None;
    plan.reasons.push(format!("task {} in slot {} may run", value.id, value.slot));
    plan.actions.push(Action::UpdateTask { task: value, expected: task.mod_revision });
}

/// Whether a task was asked to stop and may still run.
fn is_stopping(snapshot: &ClusterSnapshot, older: &Task) -> bool {
    older.desired_state == TaskState::Shutdown && !slots::has_stopped(snapshot, older)
}
