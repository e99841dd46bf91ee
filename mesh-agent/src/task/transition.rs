//! The next step of a task. Pure: what is wanted, what was seen and what was last told go in; one [`Step`] comes out.
//!
//! Invariants: the state that a step reports is never below the last; a terminal state is final; steps are chosen from what is
//! observed, so a task whose agent died midway goes on from there, and nothing is done twice.
//!
//! The walk: accepted → preparing → ready → starting → running → complete | failed | shutdown; rejected when it can't come to starting.

use std::net::IpAddr;
use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::task::{ContainerStatus, TaskState, TaskStatus};

use super::container::{ContainerFacts, Health, Phase};

/// What ends a container that has a failing health check (Swarm's words).
const UNHEALTHY: &str = "dockerexec: unhealthy container";
/// Exit code of a container that is gone: it was killed.
const KILLED: i64 = 137;
/// Stop grace of a spec that names none.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// How far the task's container is connected to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The agent has just started and doesn't know.
    Unknown,
    /// Not connected.
    Apart,
    /// Connected, with the container's process and address of that moment.
    Joined {
        /// The container's first process.
        pid: i64,
        /// Its address.
        address: Option<std::net::Ipv4Addr>,
    },
}

/// Everything that the next step depends on.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// How far the task is to go.
    pub desired: TaskState,
    /// What the engine says of its container; `None` if there is none.
    pub container: Option<&'a ContainerFacts>,
    /// What was last told of the task.
    pub last: &'a TaskStatus,
    /// Its connection to the mesh.
    pub link: Link,
    /// Whether its flows are still to end before it is stopped.
    pub drains: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Tell this, then decide again.
    Report(TaskStatus),
    /// Get the image if it is missing and make the container.
    Prepare,
    /// Start the container.
    Start,
    /// Connect the running container to the mesh.
    Join,
    /// Disconnect it.
    Leave,
    /// Let the task's flows end.
    Drain,
    /// Ask the container to end, kill it after the grace period.
    Stop,
    /// Remove the container.
    Remove,
    /// Nothing until something changes.
    Wait,
    /// Nothing ever again: the container is gone and nothing is left to tell.
    Forget,
}

/// The next step.
pub fn next(now: Timestamp, situation: &Situation<'_>) -> Step {
    if situation.desired >= TaskState::Shutdown {
        return wind_down(now, situation);
    }
    let told = |state, message: &str| Step::Report(status(now, situation, state, message));
    match situation.last.state {
        TaskState::New | TaskState::Pending | TaskState::Assigned => told(TaskState::Accepted, "accepted"),
        TaskState::Accepted => told(TaskState::Preparing, "preparing"),
        TaskState::Preparing if situation.container.is_none() => Step::Prepare,
        TaskState::Preparing => told(TaskState::Ready, "prepared"),
        TaskState::Ready if situation.desired < TaskState::Running => Step::Wait,
        TaskState::Ready => told(TaskState::Starting, "starting"),
        TaskState::Starting | TaskState::Running => keep_running(now, situation),
        _ => leave_or(situation, Step::Wait),
    }
}

/// The status after a step failed with the engine's own words: rejected before the start, failed after it.
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

fn keep_running(now: Timestamp, situation: &Situation<'_>) -> Step {
    let Some(container) = situation.container else {
        return leave_or(situation, ended(now, situation, KILLED));
    };
    match container.phase {
        Phase::Created if container.error.is_empty() => Step::Start,
        Phase::Created => Step::Report(failure(now, situation.last, &start_failure(&container.error))),
        Phase::Exited => leave_or(situation, ended(now, situation, container.exit_code)),
        Phase::Running if situation.last.err == UNHEALTHY => Step::Stop,
        Phase::Running => match container.health {
            Health::Unhealthy => {
                let told = status(now, situation, situation.last.state, &situation.last.message);
                Step::Report(TaskStatus { err: UNHEALTHY.to_owned(), ..told })
            }
            Health::Starting if situation.last.state == TaskState::Starting => Step::Wait,
            Health::Unchecked | Health::Starting | Health::Healthy => run(now, situation, container),
        },
    }
}

/// The container runs and may serve: connect it, then tell.
fn run(now: Timestamp, situation: &Situation<'_>, container: &ContainerFacts) -> Step {
    let current = Link::Joined { pid: container.pid, address: container.address };
    let told = status(now, situation, TaskState::Running, "started");
    if situation.link != current {
        Step::Join
    } else if situation.last.state == TaskState::Running
        && situation.last.container == told.container
        && situation.last.err.is_empty()
    {
        Step::Wait
    } else {
        Step::Report(told)
    }
}

fn ended(now: Timestamp, situation: &Situation<'_>, exit_code: i64) -> Step {
    let last = situation.last;
    if exit_code == 0 && last.err != UNHEALTHY {
        return Step::Report(status(now, situation, TaskState::Complete, "finished"));
    }
    let cause = if last.err == UNHEALTHY { format!(": {UNHEALTHY}") } else { String::new() };
    let mut told = status(now, situation, TaskState::Failed, &last.message);
    told.err = format!("task: non-zero exit ({exit_code}){cause}");
    if let Some(container) = &mut told.container {
        container.exit_code = exit_code;
        container.pid = 0;
    }
    Step::Report(told)
}

/// Desired shutdown: the container ends and stays, as Swarm leaves it for its logs. Desired remove: it goes too.
fn wind_down(now: Timestamp, situation: &Situation<'_>) -> Step {
    let running = situation.container.is_some_and(|container| container.phase == Phase::Running);
    if running {
        // What is not connected to the mesh, or not yet, has no flows.
        let has_flows = situation.last.state == TaskState::Running && situation.link != Link::Apart;
        return if situation.drains && has_flows { Step::Drain } else { Step::Stop };
    }
    if situation.link != Link::Apart {
        return Step::Leave;
    }
    if !situation.last.state.is_terminal() {
        return Step::Report(status(now, situation, TaskState::Shutdown, "shutdown"));
    }
    if situation.desired < TaskState::Remove {
        return Step::Wait;
    }
    if situation.container.is_some() { Step::Remove } else { Step::Forget }
}

fn leave_or(situation: &Situation<'_>, step: Step) -> Step {
    if situation.link == Link::Apart { step } else { Step::Leave }
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
