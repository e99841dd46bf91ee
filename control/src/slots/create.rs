//! Makes new tasks, and asks tasks to stop.
//!
//! Invariants: a new task is made from its service's current spec; it has a backend id for each
//! ingress-published port and each virtual IP, an attachment for each network, and no node; a task
//! without a node is stopped by the leader alone.

use mesh_state::Timestamp;
use mesh_state::ids::TaskId;
use mesh_state::service::Service;
use mesh_state::task::{Slot, Task, TaskState, TaskStatus};
use rand::RngCore;

use super::backend_ids::BackendIds;
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};

/// Makes a plan's new tasks.
pub struct TaskMaker<'a> {
    now: Timestamp,
    rng: &'a mut dyn RngCore,
    backend_ids: BackendIds<'a>,
}

impl<'a> TaskMaker<'a> {
    /// A task maker that starts from `snapshot`.
    pub fn new(now: Timestamp, snapshot: &'a ClusterSnapshot, rng: &'a mut dyn RngCore) -> Self {
        Self { now, rng, backend_ids: BackendIds::new(snapshot) }
    }

    /// Adds a new task to `plan`. If too few backend ids are free, it adds a reason instead and
    /// returns `false`.
    pub fn create(&mut self, plan: &mut Plan, service: &Service, slot: &Slot, start: Start) -> bool {
        let backends = match self.backend_ids.of_task(service) {
            Ok(backends) => backends,
            Err(error) => {
                plan.reasons.push(format!("{} is not filled: {error}", service.task_name(slot)));
                return false;
            }
        };
        let (desired_state, start_after) = match start {
            Start::Now => (TaskState::Running, None),
            Start::Ready { after } => (TaskState::Ready, after),
        };
        plan.actions.push(Action::CreateTask(Task {
            id: TaskId::random(self.rng),
            service_id: service.id.clone(),
            slot: slot.clone(),
            spec_version: service.spec_version,
            job_iteration: service.job.as_ref().map(|job| job.iteration),
            node_id: None,
            generic_resources: Vec::new(),
            desired_state,
            endpoints: backends.endpoints,
            attachments: backends.attachments,
            created_at: self.now,
            start_after,
            shutdown_at: None,
            leader_status: TaskStatus {
                state: TaskState::Pending,
                timestamp: self.now,
                message: "pending task scheduling".to_owned(),
                ..TaskStatus::default()
            },
        }));
        true
    }

    /// Completes the plan: the write that stores the last given id comes before all tasks that use
    /// ids.
    pub fn finish(self, plan: &mut Plan) {
        if let Some(cursor) = self.backend_ids.into_action() {
            plan.actions.insert(0, cursor);
        }
    }
}

/// When a new task is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// As soon as a node has prepared it.
    Now,
    /// Once the slot's older tasks have stopped, and no earlier than `after`.
    Ready {
        /// The end of the restart delay.
        after: Option<Timestamp>,
    },
}

/// The write that asks `task` to stop. `desired` is `shutdown` (its record stays as history) or
/// `remove`.
pub fn stopped(now: Timestamp, task: &Stored<Task>, desired: TaskState) -> Action {
    let mut value = task.value.clone();
    value.desired_state = desired;
    value.shutdown_at = value.shutdown_at.or(Some(now));
    if value.node_id.is_none() && !value.leader_status.state.is_terminal() {
        value.leader_status = TaskStatus {
            state: TaskState::Shutdown,
            timestamp: now,
            message: "shutdown".to_owned(),
            ..value.leader_status
        };
    }
    Action::UpdateTask { task: value, expected: task.mod_revision }
}
