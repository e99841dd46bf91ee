//! A simulated node: takes each step of its tasks after a random delay, and reports as an agent
//! does.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_control::feed::snapshot::ClusterSnapshot;
use mesh_control::node_service::mailbox::Heard;
use mesh_control::node_service::recorder::Reports;
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::node::NodeState;
use mesh_state::task::{ContainerStatus, Task, TaskState, TaskStatus};
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::clock;

/// The state that an agent keeps through every loss of contact: that of its tasks.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    states: BTreeMap<TaskId, TaskStatus>,
    rng: StdRng,
    next_address: u8,
}

impl Node {
    pub(crate) fn new(id: NodeId, rng: StdRng) -> Self {
        Self { id, states: BTreeMap::new(), rng, next_address: 1 }
    }

    /// Cuts the power: every running task is dead when it comes back.
    pub(crate) fn lose_power(&mut self) {
        for status in self.states.values_mut().filter(|status| !status.state.is_terminal()) {
            *status = ended(status.clone(), TaskState::Failed);
        }
    }

    /// Kills one running container, if there is one.
    pub(crate) fn lose_a_container(&mut self) -> Option<TaskId> {
        let running: Vec<_> =
            self.states.iter().filter(|(_, status)| status.state == TaskState::Running).collect();
        let at = self.rng.random_range(0..running.len().max(1));
        let (id, status) = running.get(at).map(|(id, status)| ((*id).clone(), (*status).clone()))?;
        self.states.insert(id.clone(), ended(status, TaskState::Failed));
        Some(id)
    }

    /// Takes a step of every task that is due, then reports everything; the manager ignores what it
    /// knows.
    pub(crate) fn step(&mut self, snapshot: &ClusterSnapshot, reports: &Reports) {
        let heard = Heard { state: NodeState::Ready, since: clock::now() };
        reports.leave(|mailbox| mailbox.put_heard(self.id.clone(), heard));
        let assigned: Vec<Task> = snapshot.tasks_on(&self.id).map(|task| task.value.clone()).collect();
        self.states.retain(|id, _| assigned.iter().any(|task| task.id == *id));
        for task in assigned {
            let old = self.states.get(&task.id).cloned().unwrap_or_default();
            let new = if self.rng.random_bool(0.7) { self.next(&task, old) } else { old };
            self.states.insert(task.id.clone(), new.clone());
            if new.state > TaskState::New {
                reports.leave(|mailbox| mailbox.put_status(self.id.clone(), task.id, new));
            }
        }
    }

    fn next(&mut self, task: &Task, old: TaskStatus) -> TaskStatus {
        let (state, wanted) = (old.state, task.desired_state);
        if state.is_terminal() {
            return old;
        }
        if wanted >= TaskState::Shutdown {
            return ended(old, TaskState::Shutdown);
        }
        let next = match state {
            TaskState::New | TaskState::Pending | TaskState::Assigned => TaskState::Accepted,
            TaskState::Accepted => TaskState::Preparing,
            TaskState::Preparing => TaskState::Ready,
            TaskState::Ready if wanted >= TaskState::Running => TaskState::Starting,
            TaskState::Starting => TaskState::Running,
            _ => return old,
        };
        let container = (next == TaskState::Running).then(|| {
            self.next_address = self.next_address.wrapping_add(1).max(2);
            ContainerStatus {
                container_id: task.id.to_string(),
                address: Some([10, 128, 0, self.next_address].into()),
                ..ContainerStatus::default()
            }
        });
        TaskStatus { state: next, timestamp: clock::now(), container, ..TaskStatus::default() }
    }

    /// The time until the next step.
    pub(crate) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(100..400))
    }
}

fn ended(status: TaskStatus, state: TaskState) -> TaskStatus {
    TaskStatus { state, timestamp: clock::now(), ..status }
}
