//! Parses what a manager assigns to this node: tasks, and the secrets and configs that they depend
//! on.

use mesh_state::ids::TaskId;
use mesh_state::proto;
use mesh_state::task::Assignment;

use crate::task::dependencies::delivered::Delivered;

/// A change to the tasks that this node must run.
#[derive(Debug, Clone, PartialEq)]
pub enum AssignmentChange {
    /// The complete set: tasks that are not named here are no longer this node's.
    Full(Vec<Assignment>),
    /// Tasks that are new or changed, and tasks that are no longer this node's.
    Delta {
        /// New or changed tasks.
        set: Vec<Assignment>,
        /// Tasks that are no longer this node's.
        removed: Vec<TaskId>,
    },
    /// A secret or config for tasks that were assigned before.
    Dependency(Delivered),
}

impl AssignmentChange {
    /// Parses a message. An assignment that can't be parsed is logged and left out: the others must
    /// not wait for it.
    pub(super) fn read(message: proto::Assignments) -> Self {
        let set = message.set.iter().filter_map(read_one).collect();
        if message.full {
            Self::Full(set)
        } else {
            Self::Delta { set, removed: message.removed_task_ids.into_iter().map(TaskId::from).collect() }
        }
    }
}

fn read_one(assignment: &proto::Assignment) -> Option<Assignment> {
    serde_json::from_str(&assignment.assignment_json)
        .inspect_err(|error| {
            tracing::error!(
                task = assignment.task_id,
                error = mesh_runtime::error_chain(&error),
                "can't parse an assignment: its task doesn't run here"
            );
        })
        .ok()
}
