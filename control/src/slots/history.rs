//! Counts in a slot's history, as the store has it.

use mesh_state::Timestamp;
use mesh_state::task::{Task, TaskState};

use crate::feed::snapshot::{ClusterSnapshot, Stored};

/// Whether a task ended without having been asked to: restart policies count such ends, and updates
/// judge by them.
pub fn ended_by_itself(snapshot: &ClusterSnapshot, task: &Task) -> bool {
    matches!(snapshot.state_of(task), TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// How many tasks of a slot, made from the same spec version as `task`, ended by themselves up to
/// its end and not before `not_before` (by this manager's clock), if that is given.
pub fn ends(
    snapshot: &ClusterSnapshot,
    task: &Stored<Task>,
    slot: &[&Stored<Task>],
    not_before: Option<Timestamp>,
) -> u64 {
    let counted = slot.iter().filter(|other| {
        other.spec_version == task.spec_version
            && other.create_revision <= task.create_revision
            && ended_by_itself(snapshot, other)
            && not_before.is_none_or(|moment| snapshot.ended_at(other) >= moment)
    });
    u64::try_from(counted.count()).unwrap_or(u64::MAX)
}
