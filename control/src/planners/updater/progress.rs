//! Where each slot of a service is in an update, read from its tasks.
//!
//! Invariants: the first task in a slot that was made from the current spec version decides the
//! slot's outcome in the update; later ones are the restart policy's. If the slot never had another
//! task, that holds only if no slot had one: then the update came before the service's first tasks.
//! Otherwise the slot was added by a larger scale.

use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::ids::TaskId;
use mesh_state::node::NodeState;
use mesh_state::service::Service;
use mesh_state::spec::UpdateOrder;
use mesh_state::task::{Slot, Task, TaskState};

use super::settings::Settings;
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::slots::history::ended_by_itself;
use crate::slots::outdated::OutdatedTasks;
use crate::slots::restart_policy::after;
use crate::slots::{self, Filling, SlotTasks};

/// The longest wait until every node has acknowledged a running task's backends.
pub const ACK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Where a slot is in the update.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase<'a> {
    /// Its task has an older spec.
    Dirty {
        /// Whether the old task runs.
        runs: bool,
    },
    /// Its new task is up and the old ones are to stop now.
    Superseded {
        /// The old tasks.
        old: Vec<&'a Stored<Task>>,
    },
    /// Its new task does not run yet, or not all nodes have acknowledged it.
    Underway {
        /// When the wait for it ends, if it is limited.
        until: Option<Timestamp>,
    },
    /// Its new task has run, or has died.
    Done {
        /// When it ran or died.
        at: Timestamp,
    },
}

/// A slot that takes part in an update.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotStep<'a> {
    /// The slot that the update has reached.
    pub slot: &'a Slot,
    /// Its tasks, newest first.
    pub tasks: SlotTasks<'a>,
    /// Where it is in the update.
    pub phase: Phase<'a>,
    /// The task whose death counts as a failure of the update, and when it died.
    pub failed: Option<(Timestamp, &'a TaskId)>,
}

/// The slots that an update of `service` changes or has changed; slots whose task still matches the
/// spec are left out.
pub fn steps<'a>(
    now: Timestamp,
    snapshot: &'a ClusterSnapshot,
    service: &'a Service,
    settings: &Settings,
) -> Vec<SlotStep<'a>> {
    let outdated = OutdatedTasks::new(snapshot, service);
    let judge =
        Judge { now, snapshot, service, settings, outdated, came_first: came_first(snapshot, service) };
    let slots = slots::of(snapshot, &service.id);
    slots
        .into_iter()
        .filter_map(|(slot, tasks)| {
            let (phase, failed) = (judge.phase(&tasks)?, judge.failure(&tasks));
            Some(SlotStep { slot, tasks, phase, failed })
        })
        .collect()
}

/// Whether a new task serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// It runs, and every node forwards to it, or the wait for that is over.
    Up,
    /// It doesn't serve yet.
    Comes {
        /// When the wait for it ends, if it is limited.
        until: Option<Timestamp>,
    },
}

impl Arrival {
    fn until(self) -> Option<Timestamp> {
        match self {
            Self::Up => None,
            Self::Comes { until } => until,
        }
    }
}

struct Judge<'a, 's> {
    now: Timestamp,
    snapshot: &'a ClusterSnapshot,
    service: &'a Service,
    settings: &'s Settings,
    outdated: OutdatedTasks<'a>,
    came_first: bool,
}

/// Whether an update is in progress and every task of the service was made from its current spec.
fn came_first(snapshot: &ClusterSnapshot, service: &Service) -> bool {
    service.update_status.as_ref().is_some_and(|status| status.state.goes_on())
        && snapshot.tasks_of(&service.id).all(|task| task.spec_version == service.spec_version)
}

impl<'a> Judge<'a, '_> {
    fn phase(&self, tasks: &[&'a Stored<Task>]) -> Option<Phase<'a>> {
        let wanted = tasks.iter().copied().filter(|task| slots::is_wanted(task));
        let (old, new): (Vec<_>, Vec<_>) = wanted.partition(|task| self.outdated.contains(task));
        if new.is_empty() {
            return self.phase_without_new(tasks, &old);
        }
        if !old.is_empty() {
            return Some(self.phase_of_both(tasks, old, &new));
        }
        self.judged(tasks).map(|task| self.outcome(task))
    }

    /// The phase of a slot in which an old and a new task are wanted.
    fn phase_of_both(
        &self,
        tasks: &[&'a Stored<Task>],
        old: SlotTasks<'a>,
        new: &[&'a Stored<Task>],
    ) -> Phase<'a> {
        let comes: Vec<_> = new.iter().map(|task| self.arrival(task)).collect();
        if comes.contains(&Arrival::Up) || self.settings.order == UpdateOrder::StopFirst {
            return Phase::Superseded { old };
        }
        match self.judged(tasks).filter(|task| ended_by_itself(self.snapshot, task)) {
            // The judged task has run or died; a later task in its place is the restart policy's.
            Some(task) => self.outcome(task),
            None => Phase::Underway { until: comes.into_iter().filter_map(Arrival::until).min() },
        }
    }

    /// The phase of a slot in which no task of the current spec is wanted.
    fn phase_without_new(&self, tasks: &[&'a Stored<Task>], old: &[&'a Stored<Task>]) -> Option<Phase<'a>> {
        let judged = self.judged(tasks);
        // A new task that ended beside the old one, and that its policy doesn't restart, was the
        // slot's one attempt.
        let had_its_turn = judged.is_some_and(|task| ended_by_itself(self.snapshot, task));
        if had_its_turn || (old.is_empty() && !self.ended_dirty(tasks)) {
            return judged.map(|task| self.outcome(task));
        }
        let runs = old.iter().any(|task| self.snapshot.state_of(task) == TaskState::Running);
        Some(Phase::Dirty { runs })
    }

    /// Whether a slot without wanted tasks ended with a task of an old spec: it is updated, too.
    fn ended_dirty(&self, tasks: &[&Stored<Task>]) -> bool {
        tasks.first().is_some_and(|newest| self.outdated.contains(newest))
            && slots::filling(self.now, self.snapshot, self.service, tasks) == Filling::Ended
    }

    /// The slot's first task of the current version, if the slot had tasks before or no slot had.
    fn judged(&self, tasks: &[&'a Stored<Task>]) -> Option<&'a Stored<Task>> {
        let first = tasks.iter().rposition(|task| task.spec_version == self.service.spec_version)?;
        (self.came_first || first + 1 < tasks.len()).then(|| tasks[first])
    }

    fn outcome(&self, task: &'a Stored<Task>) -> Phase<'a> {
        let status = self.snapshot.status_of(task);
        if ended_by_itself(self.snapshot, task) {
            return Phase::Done { at: self.snapshot.ended_at(task) };
        }
        if !slots::is_wanted(task) || status.state.is_terminal() {
            let ended = || self.snapshot.ended_at(task);
            return Phase::Done { at: self.snapshot.asked_to_stop_at(task).unwrap_or_else(ended) };
        }
        match self.arrival(task) {
            Arrival::Comes { until } => Phase::Underway { until },
            Arrival::Up => Phase::Done { at: self.snapshot.ran_at(task) },
        }
    }

    /// The slot's judged task, if it died before it ran or soon after.
    fn failure(&self, tasks: &[&'a Stored<Task>]) -> Option<(Timestamp, &'a TaskId)> {
        let task = self.judged(tasks).filter(|task| ended_by_itself(self.snapshot, task))?;
        let status = self.snapshot.status_of(task);
        // Both moments are by the clock of the task's node.
        let ran_for = status.running_at.map(|ran| status.timestamp.signed_duration_since(ran));
        let soon = ran_for.is_none_or(|span| span.to_std().unwrap_or_default() <= self.settings.monitor);
        soon.then_some((self.snapshot.ended_at(task), &task.id))
    }

    fn arrival(&self, task: &Stored<Task>) -> Arrival {
        let status = self.snapshot.status_of(task);
        if status.state != TaskState::Running {
            return Arrival::Comes { until: None };
        }
        if !task.is_in_mesh() || self.is_known_everywhere(&task.id) {
            return Arrival::Up;
        }
        match after(self.snapshot.ran_at(task).min(self.now), ACK_WAIT_MAX) {
            Some(moment) if moment > self.now => Arrival::Comes { until: Some(moment) },
            _ => Arrival::Up,
        }
    }

    /// Whether every node that is heard has acknowledged a mesh table that contains the task's
    /// status.
    fn is_known_everywhere(&self, task: &TaskId) -> bool {
        let Some(status) = self.snapshot.statuses.get(task) else { return false };
        self.snapshot.nodes.keys().filter(|node| self.snapshot.node_state(node) == NodeState::Ready).all(
            |node| {
                let acknowledged = self.snapshot.acks.get(node).and_then(|ack| i64::try_from(ack.value).ok());
                acknowledged.is_some_and(|generation| generation >= status.mod_revision)
            },
        )
    }
}
