//! Replaces tasks that ended, that are on a lost node or on a drained one.
//!
//! For each wanted task that can't go on it plans a stop and, if the restart policy says so,
//! another task in its slot. The policy is that of the spec which the task was made from, and its
//! attempts are counted in the slot's history, so the decision depends on the store alone and a new
//! leader decides alike. A task never comes back to life: a new task with an id of its own takes
//! its slot, and the old one stays as history.
//!
//! The replacement starts after the restart delay, counted from the end that this manager saw. A
//! task that ends during its own delay is replaced when that delay is over: an image that doesn't
//! exist costs one task per delay, not one per pass. A task whose node is down or drained is
//! replaced without a delay, as it did not fail.
//!
//! It can't see why a task ended. A container that the kernel killed for its memory is restarted
//! like one that crashed, and so is one that a user stopped by `docker stop` on the node, as in
//! Swarm. It can't see either whether a node that is down will be back in a second: its tasks are
//! replaced at once and not moved back, as a move would be another outage.
//!
//! Invariants: the old task is asked to stop before, or together with, the creation of its
//! replacement; a slot with another wanted task gets no replacement. A plan of which only the stop
//! was committed leaves a vacant slot, which `replicated`, `global` or `jobs` fills by the same
//! restart policy.
//!
//! Left to others: slots that have no task at all (`replicated`, `global`, `jobs`), the
//! replacement's node (`scheduler`), the moment at which it runs (`promote`).

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::Timestamp;
use mesh_state::ids::ServiceId;
use mesh_state::node::Availability;
use mesh_state::service::Service;
use mesh_state::task::{Slot, Task, TaskState};
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::Plan;
use crate::slots;
use crate::slots::create::{TaskMaker, stopped};
use crate::slots::eligible::{Suits, takes_new};
use crate::slots::outdated::{OutdatedTasks, is_current};
use crate::slots::restart_policy::{RestartDecision, decide, left_by_its_node};

/// Why a wanted task can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Ended,
    NodeDown,
    NodeDrained,
}

/// Plans stops and replacements for tasks that can't go on.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut lost: BTreeMap<&ServiceId, Vec<(&Stored<Task>, Loss)>> = BTreeMap::new();
    for task in snapshot.tasks.values().filter(|task| slots::is_wanted(task)) {
        if let Some(loss) = loss_of(snapshot, task) {
            if let Some(moment) = delayed_until(now, snapshot, task).filter(|_| loss == Loss::Ended) {
                plan.wake_by(moment);
                continue;
            }
            lost.entry(&task.service_id).or_default().push((task, loss));
        }
    }
    let mut maker = TaskMaker::new(now, snapshot, ids);
    for (service, tasks) in lost {
        // The reaper stops the tasks of a removed service.
        if let Some(service) = snapshot.services.get(service) {
            replace(now, snapshot, &service.value, &tasks, &mut maker, &mut plan);
        }
    }
    maker.finish(&mut plan);
    plan
}

/// The end of the restart delay that a task still waits for; `None` if it waits for none, or its
/// node is down, removed or drained.
fn delayed_until(now: Timestamp, snapshot: &ClusterSnapshot, task: &Task) -> Option<Timestamp> {
    snapshot.may_start_at(task).filter(|moment| *moment > now && !left_by_its_node(snapshot, task))
}

fn loss_of(snapshot: &ClusterSnapshot, task: &Task) -> Option<Loss> {
    let state = snapshot.state_of(task);
    if state == TaskState::Complete && task.job_iteration.is_some() {
        // A job's task is meant to complete.
        return None;
    }
    if state.is_terminal() {
        return Some(Loss::Ended);
    }
    let id = task.node_id.as_ref()?;
    if snapshot.is_lost(id) {
        return Some(Loss::NodeDown);
    }
    let drained = snapshot.nodes.get(id).is_some_and(|node| node.spec.availability == Availability::Drain);
    drained.then_some(Loss::NodeDrained)
}

fn replace(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    service: &Service,
    lost: &[(&Stored<Task>, Loss)],
    maker: &mut TaskMaker<'_>,
    plan: &mut Plan,
) {
    let slots = slots::of(snapshot, &service.id);
    let suits = Suits::new(&service.spec.task_template);
    let outdated = OutdatedTasks::new(snapshot, service);
    let ids: BTreeSet<_> = lost.iter().map(|(task, _)| &task.id).collect();
    let mut done: BTreeSet<&Slot> = BTreeSet::new();
    for (task, loss) in lost {
        let name = service.task_name(&task.slot);
        plan.actions.push(stopped(now, task, TaskState::Shutdown));
        let tasks = slots.get(&task.slot).map(Vec::as_slice).unwrap_or_default();
        // The old task of an update is about to stop and doesn't fill the slot instead of its
        // successor.
        let filled = tasks.iter().any(|other| {
            let goes_on = slots::is_wanted(other) && !ids.contains(&other.id);
            goes_on && (!outdated.contains(other) || outdated.contains(task))
        });
        let is_over = !is_current(service, task);
        if filled || is_over || !done.insert(&task.slot) || !may_return(snapshot, service, &task.slot, &suits)
        {
            plan.reasons.push(format!("{name} {}", in_words(*loss)));
            continue;
        }
        match decide(now, snapshot, service, task, tasks) {
            RestartDecision::Leave => {
                plan.reasons.push(format!("{name} {} and its policy wants no restart", in_words(*loss)));
            }
            RestartDecision::Replace { after } => {
                // Tasks that this plan stops occupy their slots until they have stopped.
                let start = slots::start(now, snapshot, tasks, after);
                plan.reasons.push(format!("{name} {}: it is replaced", in_words(*loss)));
                maker.create(plan, service, &task.slot, start);
            }
        }
    }
}

fn in_words(loss: Loss) -> &'static str {
    match loss {
        Loss::Ended => "ended",
        Loss::NodeDown => "was on a node that is down",
        Loss::NodeDrained => "is on a drained node",
    }
}

/// Whether a slot may have a task now: a slot of a global service needs its own node.
fn may_return(snapshot: &ClusterSnapshot, service: &Service, slot: &Slot, suits: &Suits) -> bool {
    match slot {
        Slot::Number(_) => !slots::is_global(&service.spec),
        Slot::Node(id) => snapshot.nodes.get(id).is_some_and(|node| takes_new(snapshot, node, suits)),
    }
}
