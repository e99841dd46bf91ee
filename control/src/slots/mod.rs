//! What planners share: a service's tasks slot by slot, and the questions and writes about them
//! that more than one planner needs.
//!
//! Purpose: this file says which tasks are in a slot and what fills it. Beside it: how a task is
//! made and stopped ([`create`]), whether it was made from an older spec ([`outdated`]), whether
//! and when it is restarted ([`restart_policy`], [`history`]), whether a node may run it
//! ([`eligible`], [`constraint`]), its backend ids, addresses and ports ([`backend_ids`],
//! [`addresses`], [`ports`], never one of [`own_ports`]), the secrets, configs and networks that it
//! refers to ([`references`], [`networks`]), how long it drains ([`drain`]), and what a network
//! is given ([`network_space`]), and which hosts have its addresses already ([`host_overlap`]).
//!
//! Invariants: pure, and below every planner; a slot's tasks are newest first; tasks that are to be
//! removed belong to no slot any more. Only [`create::TaskMaker`] makes a task and only
//! [`create::stopped`] asks one to stop, so that every new task has its backend ids and every stop
//! its moment.
//!
//! Left to others: what to do about a slot.

pub mod addresses;
pub mod backend_ids;
pub mod constraint;
pub mod create;
pub mod drain;
pub mod eligible;
pub mod history;
pub mod host_overlap;
pub mod network_space;
pub mod networks;
pub mod outdated;
pub mod own_ports;
pub mod ports;
pub mod references;
pub mod restart_policy;
mod subnets6;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::ServiceId;
use mesh_state::service::Service;
use mesh_state::spec::ServiceSpec;
use mesh_state::task::{Slot, Task, TaskState};

use self::create::Start;
use self::outdated::OutdatedTasks;
use self::restart_policy::{RestartDecision, decide};
use crate::feed::snapshot::{ClusterSnapshot, Stored};

/// The tasks of one slot, newest first.
pub type SlotTasks<'a> = Vec<&'a Stored<Task>>;

/// What fills a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filling {
    /// A task that is wanted, whatever its observed state.
    Wanted,
    /// A task that ended and is not to be restarted: the slot stays as it is.
    Ended,
    /// Nothing; a new task may start as given here.
    Vacant(Start),
}

/// Whether a service wants one task on each node.
pub fn is_global(spec: &ServiceSpec) -> bool {
    spec.mode.global.is_some() && spec.mode.replicated.is_none()
}

/// The slots of a service.
pub fn of<'a>(snapshot: &'a ClusterSnapshot, service: &ServiceId) -> BTreeMap<&'a Slot, SlotTasks<'a>> {
    let mut slots: BTreeMap<&Slot, SlotTasks<'a>> = BTreeMap::new();
    for task in snapshot.tasks_of(service).filter(|task| task.desired_state != TaskState::Remove) {
        slots.entry(&task.slot).or_default().push(task);
    }
    for tasks in slots.values_mut() {
        tasks.sort_by_key(|task| Reverse((task.create_revision, task.created_at)));
    }
    slots
}

/// Whether a task's desired state is to be prepared or to run.
pub fn is_wanted(task: &Task) -> bool {
    task.desired_state <= TaskState::Running
}

/// What fills a slot with these tasks.
pub fn filling(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    service: &Service,
    tasks: &[&Stored<Task>],
) -> Filling {
    if tasks.iter().any(|task| is_wanted(task)) {
        return Filling::Wanted;
    }
    let Some(newest) = tasks.first() else { return Filling::Vacant(Start::Now) };
    match decide(now, snapshot, service, newest, tasks) {
        RestartDecision::Leave => Filling::Ended,
        RestartDecision::Replace { after } => Filling::Vacant(start(now, snapshot, tasks, after)),
    }
}

/// How a new task starts in a slot with the older tasks `older` whose restart delay ends at
/// `after`.
pub fn start(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    older: &[&Stored<Task>],
    after: Option<Timestamp>,
) -> Start {
    let after = after.filter(|moment| *moment > now);
    if after.is_none() && older.iter().all(|task| has_stopped(snapshot, task)) {
        Start::Now
    } else {
        Start::Ready { after }
    }
}

/// The wanted task of a slot whose observed state is furthest; of equal ones the oldest.
pub fn most_useful<'a>(snapshot: &ClusterSnapshot, tasks: &[&'a Stored<Task>]) -> Option<&'a Stored<Task>> {
    let wanted = tasks.iter().copied().filter(|task| is_wanted(task));
    wanted.max_by_key(|task| {
        let state = snapshot.state_of(task);
        (!state.is_terminal(), state, Reverse(task.create_revision))
    })
}

/// The wanted tasks of a slot beside the most useful one, if all were made from the current spec.
/// The old and the new task of an update are no surplus: the updater stops the old one.
pub fn surplus<'a>(
    snapshot: &ClusterSnapshot,
    outdated: &OutdatedTasks<'_>,
    tasks: &[&'a Stored<Task>],
) -> Vec<&'a Stored<Task>> {
    let clean: SlotTasks<'a> =
        tasks.iter().copied().filter(|task| is_wanted(task) && !outdated.contains(task)).collect();
    let stays = most_useful(snapshot, &clean).map(|task| &task.id);
    clean.into_iter().filter(|task| Some(&task.id) != stays).collect()
}

/// Whether a task has stopped, or is on a node that is down or removed, so that its state can't be
/// known.
pub fn has_stopped(snapshot: &ClusterSnapshot, task: &Task) -> bool {
    snapshot.state_of(task).is_terminal() || task.node_id.as_ref().is_none_or(|node| snapshot.is_lost(node))
}
