//! When this manager saw each write of others, by its own clock: the stamps in records are of their
//! writers' clocks.
//!
//! Code that compares a moment with `now` asks here, so that all moments are of one clock: how long
//! a node is silent, how long ago a task ended or ran, when it was asked to stop, when its restart
//! delay is over.
//!
//! Invariants: pure; a step is seen once, and keeps its moment over a new listing. Steps from
//! before the first listing were not seen by this manager: for them the stamps in the records
//! count, but never as later than the listing.

use chrono::TimeDelta;
use mesh_state::Timestamp;
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::keys::{self, Key};
use mesh_state::node::{Liveness, NodeState};
use mesh_state::store::Change;
use mesh_state::task::{Task, TaskState};

use super::{ClusterSnapshot, Stored};

/// When this manager saw each step of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskSeen {
    made: Option<Timestamp>,
    asked_to_stop: Option<Timestamp>,
    ran: Option<Timestamp>,
    ended: Option<Timestamp>,
}

/// Which steps a task has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Steps {
    asked_to_stop: bool,
    ran: bool,
    ended: bool,
}

impl TaskSeen {
    /// Notes the steps that are new since `before`; `None` is a task that was not known.
    fn note(&mut self, before: Option<Steps>, after: Steps, now: Timestamp) {
        let is_new = |was: fn(Steps) -> bool| was(after) && !before.is_some_and(was);
        let see = |step: &mut Option<Timestamp>, happened| {
            if happened {
                *step = step.or(Some(now));
            }
        };
        see(&mut self.made, before.is_none());
        see(&mut self.asked_to_stop, is_new(|steps| steps.asked_to_stop));
        see(&mut self.ran, is_new(|steps| steps.ran));
        see(&mut self.ended, is_new(|steps| steps.ended));
    }
}

impl ClusterSnapshot {
    /// Applies a change that the watch saw at `now`, by this manager's clock.
    pub fn apply_seen(&mut self, change: Change, now: Timestamp) {
        match keys::parse(change.key()) {
            Some(Key::Liveness(node)) => {
                let state = |snapshot: &Self| snapshot.liveness.get(&node).map(|liveness| liveness.state);
                let before = state(self);
                self.apply(change);
                match state(self) {
                    None => drop(self.liveness_seen.remove(&node)),
                    after if after != before => drop(self.liveness_seen.insert(node, now)),
                    _ => {}
                }
            }
            Some(Key::Task(id) | Key::Status(id)) => {
                let before = self.steps(&id);
                self.apply(change);
                match self.steps(&id) {
                    None => drop(self.tasks_seen.remove(&id)),
                    Some(after) => self.tasks_seen.entry(id).or_default().note(before, after, now),
                }
            }
            Some(Key::Manager(name)) => {
                self.apply(change);
                if self.managers.contains_key(&name) {
                    self.managers_seen.insert(name, now);
                } else {
                    self.managers_seen.remove(&name);
                }
            }
            Some(Key::MemberKeys) => {
                self.apply(change);
                self.member_keys_seen = self.member_keys.as_ref().map(|_| now);
            }
            _ => self.apply(change),
        }
    }

    /// Takes the moments over from the snapshot `before`; what is new in this listing was seen
    /// `now`. Before the first listing nothing was seen.
    pub fn see_listing(&mut self, before: &Self, now: Timestamp) {
        let is_first = before.revision == 0;
        let liveness = |(node, liveness): (&NodeId, &Stored<Liveness>)| {
            let same = before.liveness.get(node).is_some_and(|known| known.state == liveness.state);
            let known = before.liveness_seen.get(node).filter(|_| same).copied();
            // The day that a node may be down must not start again when a manager starts; the
            // seconds of silence may.
            let told = (is_first && liveness.state == NodeState::Down).then(|| liveness.since.min(now));
            (node.clone(), known.or(told).unwrap_or(now))
        };
        self.liveness_seen = self.liveness.iter().map(liveness).collect();
        let tasks: Vec<TaskId> = self.tasks.keys().cloned().collect();
        self.tasks_seen = tasks
            .into_iter()
            .map(|id| {
                let mut seen = before.tasks_seen.get(&id).copied().unwrap_or_default();
                if is_first {
                    seen = self.told_of(&id, now);
                } else if let Some(after) = self.steps(&id) {
                    seen.note(before.steps(&id), after, now);
                }
                (id, seen)
            })
            .collect();
        let same = |name: &String| {
            let revision = |snapshot: &Self| snapshot.managers.get(name).map(|manager| manager.mod_revision);
            revision(self).is_some() && revision(before) == revision(self)
        };
        let managers = before.managers_seen.iter().filter(|(name, _)| same(name));
        self.managers_seen = managers.map(|(name, seen)| (name.clone(), *seen)).collect();
        let revision = |snapshot: &Self| snapshot.member_keys.as_ref().map(|keys| keys.mod_revision);
        let told = self.member_keys.as_ref().map(|keys| keys.changed_at.min(now));
        self.member_keys_seen = match before.member_keys_seen {
            known @ Some(_) if revision(before) == revision(self) => known,
            _ if is_first => told,
            _ => told.map(|_| now),
        };
    }

    /// The moments from the records' stamps, for a task that this manager's watch didn't see
    /// change.
    fn told_of(&self, id: &TaskId, now: Timestamp) -> TaskSeen {
        let Some(task) = self.tasks.get(id) else { return TaskSeen::default() };
        let status = self.status_of(task);
        TaskSeen {
            made: Some(task.created_at.min(now)),
            asked_to_stop: task.shutdown_at.map(|told| told.min(now)),
            ran: status.ran_recorded_at.or(status.running_at).map(|told| told.min(now)),
            ended: status
                .state
                .is_terminal()
                .then(|| status.recorded_at.unwrap_or(status.timestamp).min(now)),
        }
    }

    fn steps(&self, id: &TaskId) -> Option<Steps> {
        let task = self.tasks.get(id)?;
        let status = self.status_of(task);
        Some(Steps {
            asked_to_stop: task.shutdown_at.is_some(),
            ran: status.running_at.is_some() || status.state == TaskState::Running,
            ended: status.state.is_terminal(),
        })
    }

    fn seen(&self, task: &Task) -> TaskSeen {
        self.tasks_seen.get(&task.id).copied().unwrap_or_default()
    }

    /// Since when a node is in its state of liveness, by this manager's clock; by the writer's
    /// clock if the watch didn't see the change.
    pub fn liveness_since(&self, node: &NodeId, liveness: &Liveness) -> Timestamp {
        self.liveness_seen.get(node).copied().unwrap_or(liveness.since)
    }

    /// When a task ended, by this manager's clock. For a task that has not ended: when it came into
    /// its present state.
    pub fn ended_at(&self, task: &Task) -> Timestamp {
        let status = self.status_of(task);
        self.seen(task).ended.or(status.recorded_at).unwrap_or(status.timestamp)
    }

    /// When a task first ran, by this manager's clock. For a task that never ran: when it came into
    /// its present state.
    pub fn ran_at(&self, task: &Task) -> Timestamp {
        let status = self.status_of(task);
        let told = status.ran_recorded_at.or(status.running_at);
        self.seen(task).ran.or(told).unwrap_or(status.timestamp)
    }

    /// When a task was first asked to stop, by this manager's clock.
    pub fn asked_to_stop_at(&self, task: &Task) -> Option<Timestamp> {
        let told = task.shutdown_at?;
        Some(self.seen(task).asked_to_stop.unwrap_or(told))
    }

    /// When the restart delay of a task is over, by this manager's clock: the delay that the leader
    /// chose, counted from when this manager saw the task created.
    pub fn may_start_at(&self, task: &Task) -> Option<Timestamp> {
        let told = task.start_after?;
        let delay = told.signed_duration_since(task.created_at).max(TimeDelta::zero());
        Some(self.seen(task).made.and_then(|made| made.checked_add_signed(delay)).unwrap_or(told))
    }

    /// When the members' keys last changed, by this manager's clock; `told` if the watch didn't see
    /// the change.
    pub fn member_keys_since(&self, told: Timestamp) -> Timestamp {
        self.member_keys_seen.unwrap_or(told)
    }
}

#[cfg(test)]
mod tests;
