//! The queue of task statuses for a manager: each is kept until the manager acknowledges that it is
//! stored.
//!
//! Invariants: pure. At most one status of a task is in flight; a newer one waits for its ack and
//! replaces the one that waited. No status is dropped before its ack, and a new session sends all
//! of them again.

use std::collections::BTreeMap;

use mesh_state::ids::TaskId;
use mesh_state::task::TaskStatus;

/// The newest status of every task that the manager has not acknowledged.
#[derive(Debug, Default)]
pub(super) struct StatusOutbox {
    tasks: BTreeMap<TaskId, PendingStatus>,
    last_number: u64,
}

#[derive(Debug)]
struct PendingStatus {
    newest: TaskStatus,
    /// The number of the newest status of all tasks.
    number: u64,
    progress: SendProgress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendProgress {
    /// Not sent.
    Waits,
    /// Sent, not acknowledged.
    UnderWay,
    /// An older status is in flight; the newest waits for its ack.
    WaitsBehind,
}

impl StatusOutbox {
    /// Queues a status.
    pub(super) fn put(&mut self, task: TaskId, status: TaskStatus) {
        let number = self.last_number + 1;
        match self.tasks.get_mut(&task) {
            Some(entry) if entry.newest == status => return,
            Some(entry) => {
                entry.newest = status;
                entry.number = number;
                if entry.progress == SendProgress::UnderWay {
                    entry.progress = SendProgress::WaitsBehind;
                }
            }
            None => {
                self.tasks
                    .insert(task, PendingStatus { newest: status, number, progress: SendProgress::Waits });
            }
        }
        self.last_number = number;
    }

    /// Takes at most `limit` statuses with their numbers; they count as in flight from here on.
    pub(super) fn take(&mut self, limit: usize) -> Vec<(TaskId, TaskStatus, u64)> {
        self.tasks
            .iter_mut()
            .filter(|(_, entry)| entry.progress == SendProgress::Waits)
            .take(limit)
            .map(|(task, entry)| {
                entry.progress = SendProgress::UnderWay;
                (task.clone(), entry.newest.clone(), entry.number)
            })
            .collect()
    }

    /// Handles an ack: the manager has stored the status `number` of `task`, or, without a number,
    /// the one in flight. The late ack of an older status, which was sent again, does not remove a
    /// newer one.
    pub(super) fn acknowledge(&mut self, task: &TaskId, number: Option<u64>) {
        match self.tasks.get_mut(task) {
            Some(PendingStatus { progress: SendProgress::UnderWay, number: newest, .. })
                if number.is_some_and(|number| number != *newest) => {}
            Some(entry) if entry.progress == SendProgress::WaitsBehind => {
                entry.progress = SendProgress::Waits;
            }
            Some(entry) if entry.progress == SendProgress::UnderWay => {
                self.tasks.remove(task);
            }
            _ => {}
        }
    }

    /// Queues all statuses in flight again, as they may be lost.
    pub(super) fn resend(&mut self) {
        for entry in self.tasks.values_mut() {
            entry.progress = SendProgress::Waits;
        }
    }

    /// Whether a status can be sent now.
    pub(super) fn has_waiting(&self) -> bool {
        self.tasks.values().any(|entry| entry.progress == SendProgress::Waits)
    }

    /// Whether an ack is awaited.
    pub(super) fn has_under_way(&self) -> bool {
        self.tasks.values().any(|entry| entry.progress != SendProgress::Waits)
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::task::TaskState;

    use super::*;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state, ..TaskStatus::default() }
    }

    fn states(sent: &[(TaskId, TaskStatus, u64)]) -> Vec<(&str, TaskState)> {
        sent.iter().map(|(task, status, _)| (task.as_str(), status.state)).collect()
    }

    #[test]
    fn a_status_stays_until_it_is_acknowledged() {
        let (mut outbox, task) = (StatusOutbox::default(), TaskId::from("a"));
        outbox.put(task.clone(), status(TaskState::Preparing));
        assert_eq!(states(&outbox.take(9)), [("a", TaskState::Preparing)]);
        assert_eq!(outbox.take(9), [], "it is under way");
        outbox.resend();
        assert_eq!(states(&outbox.take(9)), [("a", TaskState::Preparing)], "a new session sends it again");
        outbox.acknowledge(&task, None);
        assert!(!outbox.has_waiting() && !outbox.has_under_way(), "nothing is left");
    }

    #[test]
    fn an_acknowledgement_of_an_older_status_does_not_forget_a_newer_one() {
        let (mut outbox, task) = (StatusOutbox::default(), TaskId::from("a"));
        outbox.put(task.clone(), status(TaskState::Starting));
        assert_eq!(outbox.take(9).len(), 1);
        outbox.put(task.clone(), status(TaskState::Running));
        outbox.put(task.clone(), status(TaskState::Failed));
        assert_eq!(outbox.take(9), [], "one at a time");
        outbox.acknowledge(&task, None);
        assert_eq!(states(&outbox.take(9)), [("a", TaskState::Failed)], "the newest follows");
        outbox.acknowledge(&task, None);
        outbox.acknowledge(&task, None);
        assert!(!outbox.has_waiting() && !outbox.has_under_way());
    }

    #[test]
    fn a_late_acknowledgement_of_what_was_sent_again_forgets_nothing_newer() {
        let (mut outbox, task) = (StatusOutbox::default(), TaskId::from("a"));
        outbox.put(task.clone(), status(TaskState::Starting));
        let first = outbox.take(9)[0].2;
        outbox.put(task.clone(), status(TaskState::Running));
        outbox.resend();
        let second = outbox.take(9)[0].2;
        outbox.acknowledge(&task, Some(first));
        assert!(outbox.has_under_way(), "the newer status is not stored");
        outbox.acknowledge(&task, Some(second));
        assert!(!outbox.has_waiting() && !outbox.has_under_way(), "nothing is left");
    }

    #[test]
    fn batches_have_a_limit() {
        let mut outbox = StatusOutbox::default();
        for task in ["a", "b", "c"] {
            outbox.put(TaskId::from(task), status(TaskState::Running));
        }
        assert_eq!((outbox.take(2).len(), outbox.take(2).len()), (2, 1));
    }
}
