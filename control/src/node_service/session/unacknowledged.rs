//! Statuses that a node reported and that the store doesn't show yet.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_state::ids::{NodeId, TaskId};
use mesh_state::proto::StatusAck;
use mesh_state::task::TaskStatus;
use tokio::time::Instant;

use super::super::mailbox::holds;
use crate::feed::snapshot::ClusterSnapshot;

/// A task that is still unknown this long after it was reported is gone; until then the snapshot
/// may be behind.
const UNKNOWN_TASK_GRACE: Duration = Duration::from_secs(5);

/// The newest status of each task that was not acknowledged yet.
#[derive(Default)]
pub(super) struct Unacknowledged(BTreeMap<TaskId, Waiting>);

/// A status that is not stored yet.
struct Waiting {
    status: TaskStatus,
    /// The agent's number of the status.
    number: u64,
    reported_at: Instant,
}

impl Unacknowledged {
    /// The number of tasks with such a status.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Notes a reported status of `task`. A status that is sent again keeps the moment of its first
    /// report.
    pub(super) fn put(&mut self, task: TaskId, number: u64, status: TaskStatus) {
        let reported_at = self.0.get(&task).map_or_else(Instant::now, |earlier| earlier.reported_at);
        self.0.insert(task, Waiting { status, number, reported_at });
    }

    /// Removes the statuses of `node` that the store holds by now, and those that it will never
    /// hold; returns their acknowledgement.
    pub(super) fn settle(&mut self, node: &NodeId, snapshot: &ClusterSnapshot) -> StatusAck {
        let mut done = StatusAck::default();
        self.0.retain(|id, waiting| {
            let stored = snapshot.statuses.get(id).map(|stored| &stored.value);
            let task = snapshot.tasks.get(id);
            let elsewhere = task.is_some_and(|task| task.node_id.as_ref() != Some(node));
            let gone = task.is_none() && waiting.reported_at.elapsed() >= UNKNOWN_TASK_GRACE;
            let settled = elsewhere || gone || holds(stored, &waiting.status);
            if settled {
                done.task_ids.push(id.to_string());
                done.numbers.push(waiting.number);
            }
            !settled
        });
        done
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::task::TaskState;

    use super::*;
    use crate::fixtures::{World, service, task};

    #[tokio::test(start_paused = true)]
    async fn a_status_waits_until_the_store_holds_it_or_never_will() {
        let mut world = World::with_nodes(["a", "b"]);
        world.put_service(&service("web", 2));
        for (id, node) in [("here", "a"), ("elsewhere", "b")] {
            let mut task = task(id, "web", 1);
            task.node_id = Some(node.into());
            world.put_task(&task);
        }
        let mut waiting = Unacknowledged::default();
        let running = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        for (id, number) in [("here", 1), ("elsewhere", 2), ("unknown", 3)] {
            waiting.put(id.into(), number, running.clone());
        }
        let node = NodeId::from("a");
        assert_eq!(waiting.settle(&node, &world.snapshot).numbers, [2], "another node has the task");
        tokio::time::advance(UNKNOWN_TASK_GRACE / 2).await;
        waiting.put("unknown".into(), 4, running);
        world.report(&"here".into(), TaskState::Running);
        let stored = world.snapshot.statuses[&"here".into()].value.clone();
        waiting.put("here".into(), 5, stored);
        assert_eq!(waiting.settle(&node, &world.snapshot).numbers, [5], "the store holds the newest");
        tokio::time::advance(UNKNOWN_TASK_GRACE / 2).await;
        assert_eq!(waiting.settle(&node, &world.snapshot).numbers, [4], "the task is gone");
        assert_eq!(waiting.len(), 0);
    }
}
