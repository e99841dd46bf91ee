//! Decides the next step of a task. Pure: from the desired state, the observed container and the
//! last reported status to one [`TaskStep`].
//!
//! Invariants: the state that a step reports is never below the last; a terminal state is final;
//! steps are chosen from what is observed, so a task whose agent died midway continues, and nothing
//! is done twice.
//!
//! The states: accepted → preparing → ready → starting → running → complete | failed | shutdown;
//! rejected if it can't reach starting.

use std::net::IpAddr;
use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::task::{ContainerStatus, TaskState, TaskStatus};

use super::container::{ContainerFacts, Health, Phase};

/// The error of a task whose container was stopped because its health check failed (Swarm's words).
const UNHEALTHY: &str = "dockerexec: unhealthy container";
/// Exit code of a container that is gone: it was killed.
const KILLED: i64 = 137;
/// The grace period of a spec that sets none.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// Whether the task's container is connected to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeshLink {
    /// The agent has just started and doesn't know.
    Unknown,
    /// Not connected.
    Apart,
    /// Connected, with the container's process and address at that moment.
    Joined {
        /// The container's first process.
        pid: i64,
        /// The container's address.
        address: Option<std::net::Ipv4Addr>,
    },
}

/// The inputs of the decision.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The desired state.
    pub desired: TaskState,
    /// What the engine reports of its container; `None` if there is none.
    pub container: Option<&'a ContainerFacts>,
    /// The status that was last reported.
    pub last: &'a TaskStatus,
    /// The task's connection to the mesh.
    pub link: MeshLink,
    /// Whether the drain of its flows is not over yet.
    pub drains: bool,
}

/// What to do next for a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskStep {
    /// Report this status, then decide again.
    Report(TaskStatus),
    /// Pull the image if it is missing and create the container.
    Prepare,
    /// Start the container.
    Start,
    /// Connect the running container to the mesh.
    Join,
    /// Disconnect it.
    Leave,
    /// Wait for the task's flows to end.
    Drain,
    /// Ask the container to stop, kill it after the grace period.
    Stop,
    /// Remove the container.
    Remove,
    /// Nothing until something changes.
    Wait,
    /// Nothing ever again: the container is gone and everything is reported.
    Forget,
}

/// Decides the next step.
pub fn next(now: Timestamp, situation: &Situation<'_>) -> TaskStep {
    if situation.desired >= TaskState::Shutdown {
        return wind_down(now, situation);
    }
    let report = |state, message: &str| TaskStep::Report(status(now, situation, state, message));
    match situation.last.state {
        TaskState::New | TaskState::Pending | TaskState::Assigned => report(TaskState::Accepted, "accepted"),
        TaskState::Accepted => report(TaskState::Preparing, "preparing"),
        TaskState::Preparing if situation.container.is_none() => TaskStep::Prepare,
        TaskState::Preparing => report(TaskState::Ready, "prepared"),
        TaskState::Ready if situation.desired < TaskState::Running => TaskStep::Wait,
        TaskState::Ready => report(TaskState::Starting, "starting"),
        TaskState::Starting | TaskState::Running => keep_running(now, situation),
        _ => leave_or(situation, TaskStep::Wait),
    }
}

/// The status after a step failed with the engine's own words: rejected before the start, failed
/// after it.
pub fn failure(now: Timestamp, last: &TaskStatus, err: &str) -> TaskStatus {
    let state = if last.state < TaskState::Starting { TaskState::Rejected } else { TaskState::Failed };
    TaskStatus { state, timestamp: now, err: err.to_owned(), ..last.clone() }
}

/// The error of a container that the engine could not start.
pub fn start_failure(reason: &str) -> String {
    format!("starting container failed: {reason}")
}

/// The time between the stop signal and the kill.
pub fn stop_grace(nanoseconds: Option<i64>) -> Duration {
    nanoseconds.and_then(|grace| u64::try_from(grace).ok()).map_or(DEFAULT_GRACE, Duration::from_nanos)
}

fn keep_running(now: Timestamp, situation: &Situation<'_>) -> TaskStep {
    let Some(container) = situation.container else {
        return leave_or(situation, ended(now, situation, KILLED));
    };
    match container.phase {
        Phase::Created if container.error.is_empty() || container.lacks_address() => TaskStep::Start,
        Phase::Created => TaskStep::Report(failure(now, situation.last, &start_failure(&container.error))),
        Phase::Exited => leave_or(situation, ended(now, situation, container.exit_code)),
        Phase::Running if situation.last.err == UNHEALTHY => TaskStep::Stop,
        Phase::Running => match container.health {
            Health::Unhealthy => {
                let new = status(now, situation, situation.last.state, &situation.last.message);
                TaskStep::Report(TaskStatus { err: UNHEALTHY.to_owned(), ..new })
            }
            Health::Starting if situation.last.state == TaskState::Starting => TaskStep::Wait,
            Health::Unchecked | Health::Starting | Health::Healthy => run(now, situation, container),
        },
    }
}

/// The container runs and may serve: connect it, then report.
fn run(now: Timestamp, situation: &Situation<'_>, container: &ContainerFacts) -> TaskStep {
    let current = MeshLink::Joined { pid: container.pid, address: container.address };
    let new = status(now, situation, TaskState::Running, "started");
    if situation.link != current {
        TaskStep::Join
    } else if situation.last.state == TaskState::Running
        && situation.last.container == new.container
        && situation.last.err.is_empty()
    {
        TaskStep::Wait
    } else {
        TaskStep::Report(new)
    }
}

fn ended(now: Timestamp, situation: &Situation<'_>, exit_code: i64) -> TaskStep {
    let last = situation.last;
    if exit_code == 0 && last.err != UNHEALTHY {
        return TaskStep::Report(status(now, situation, TaskState::Complete, "finished"));
    }
    let cause = if last.err == UNHEALTHY { format!(": {UNHEALTHY}") } else { String::new() };
    let mut failed = status(now, situation, TaskState::Failed, &last.message);
    failed.err = format!("task: non-zero exit ({exit_code}){cause}");
    if let Some(container) = &mut failed.container {
        container.exit_code = exit_code;
        container.pid = 0;
    }
    TaskStep::Report(failed)
}

/// Desired shutdown: the container is stopped and stays, as Swarm leaves it for its logs. Desired
/// remove: it is removed too.
fn wind_down(now: Timestamp, situation: &Situation<'_>) -> TaskStep {
    let running = situation.container.is_some_and(|container| container.phase == Phase::Running);
    if running {
        // A task that is not connected to the mesh has no flows.
        let has_flows = situation.last.state == TaskState::Running && situation.link != MeshLink::Apart;
        return if situation.drains && has_flows { TaskStep::Drain } else { TaskStep::Stop };
    }
    if situation.link != MeshLink::Apart {
        return TaskStep::Leave;
    }
    if !situation.last.state.is_terminal() {
        return TaskStep::Report(status(now, situation, TaskState::Shutdown, "shutdown"));
    }
    if situation.desired < TaskState::Remove {
        return TaskStep::Wait;
    }
    if situation.container.is_some() { TaskStep::Remove } else { TaskStep::Forget }
}

fn leave_or(situation: &Situation<'_>, step: TaskStep) -> TaskStep {
    if situation.link == MeshLink::Apart { step } else { TaskStep::Leave }
}

fn status(now: Timestamp, situation: &Situation<'_>, state: TaskState, message: &str) -> TaskStatus {
    let seen = situation.container.map(|container| ContainerStatus {
        container_id: container.id.clone(),
        pid: container.pid,
        exit_code: container.exit_code,
        address: container.address.map(IpAddr::V4),
        host_ports: container.host_ports.clone(),
    });
    let container = seen.or_else(|| situation.last.container.clone());
    TaskStatus {
        state,
        timestamp: now,
        message: message.to_owned(),
        running_at: situation.last.running_at,
        container,
        ..TaskStatus::default()
    }
}

#[cfg(test)]
mod tests;
