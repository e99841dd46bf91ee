//! Drives one task: inspects its container, asks [`transition`](super::transition) for the next
//! step, takes it, and inspects again.
//!
//! Invariants: this module decides nothing but when to inspect again; an engine that does not
//! answer changes no status, the driver only asks it again.

mod prepare;
mod start;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_state::Timestamp;
use mesh_state::ids::TaskId;
use mesh_state::task::{Assignment, TaskState, TaskStatus};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{debug, info, warn};

use super::container::{ContainerFacts, Phase};
use super::container_spec::{self, NodeIdentity};
use super::dependencies::Dependencies;
use super::drain::{DrainProgress, DrainStage, DrainVerdict};
use super::listening;
use super::local::{Asker, LocalTasks, known_addresses};
use super::network::{RunningTask, TaskNetwork, addresses};
use super::networks::NetworkFacts;
use super::networks::keeper::Networks;
use super::runtime::{Runtime, RuntimeError};
use super::transition::{MeshLink, Situation, TaskStep, failure, next, stop_grace};
use mesh_runtime::backoff::Backoff;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(3);

/// A task, and the state that it is to reach.
#[derive(Debug, Clone)]
pub(super) struct Goal {
    pub(super) assignment: Arc<Assignment>,
    pub(super) desired: TaskState,
}

/// A driver's message to the worker.
#[derive(Debug)]
pub(super) enum DriverUpdate {
    /// The task's new status.
    Status(TaskId, TaskStatus),
    /// The task's container and files are gone.
    Gone(TaskId),
}

/// Whether the network `mesh` exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BridgeState {
    /// It exists.
    Ready {
        /// The node's own address on it.
        address: Option<Ipv4Addr>,
    },
    /// It doesn't exist yet, for this reason: tasks wait.
    NotYet(String),
    /// Making it has failed for a while, for this reason: tasks are rejected, so that they are
    /// placed elsewhere.
    Unfit(String),
}

/// Dependencies shared by all task drivers.
#[derive(Clone)]
pub(super) struct DriverContext {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) network: Arc<dyn TaskNetwork>,
    pub(super) local: Arc<LocalTasks>,
    pub(super) networks: Arc<Networks>,
    pub(super) node: Arc<NodeIdentity>,
    pub(super) dependencies: Arc<Dependencies>,
    pub(super) bridge: watch::Receiver<BridgeState>,
    pub(super) updates: mpsc::Sender<DriverUpdate>,
}

/// The driver of one task.
pub(super) struct Driver {
    pub(super) context: DriverContext,
    pub(super) id: TaskId,
    pub(super) goal: watch::Receiver<Goal>,
    /// Notified when the container may have changed.
    pub(super) nudge: Arc<Notify>,
    pub(super) last: TaskStatus,
    pub(super) link: MeshLink,
    /// The task's drain, once it is to stop.
    pub(super) drain: DrainStage,
    /// When the driver stops waiting for the task to listen, once it has begun to.
    pub(super) listens_until: Option<Instant>,
    /// Since when something on this node is in the way of its networks.
    pub(super) hindered_since: Option<tokio::time::Instant>,
    /// What is known of the task's container without asking the engine.
    pub(super) known: KnownContainer,
    /// The task's networks, if they were looked at a moment ago.
    pub(super) made_networks: Vec<NetworkFacts>,
}

/// What is known of a container without asking the engine.
#[derive(Debug, Default)]
pub(super) enum KnownContainer {
    /// Nothing is known.
    #[default]
    None,
    /// There is no container: the task is new to this node. If the node has lost its record of an
    /// earlier container, creating another fails because its name is taken.
    Absent,
    /// The container was created just now.
    Made(ContainerFacts),
}

/// The result of a step.
enum Taken {
    /// A status was reported: what was seen of the container still holds.
    Reported,
    /// The container has changed: inspect it again.
    Done,
    /// There was nothing to do.
    Idle,
    /// The step is impossible now, for this reason.
    Retry(String),
    /// The container and its files are gone.
    Gone,
}

impl Driver {
    /// Drives the task until its container is gone, or its worker is.
    pub(super) async fn run(mut self) {
        self.drive().await;
        self.context.local.forget(&self.id);
    }

    async fn drive(&mut self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        let mut trouble = String::new();
        loop {
            let goal = self.goal.borrow_and_update().clone();
            let taken = match self.look(&goal).await {
                Ok(seen) => {
                    self.publish(&goal, seen.as_ref());
                    self.advance(&goal, seen.as_ref()).await
                }
                Err(error) => Taken::Retry(format!("look at the container: {error}")),
            };
            let alive = match taken {
                Taken::Reported | Taken::Done => {
                    backoff.reset();
                    true
                }
                Taken::Idle => {
                    backoff.reset();
                    trouble.clear();
                    self.until_changed().await
                }
                Taken::Retry(reason) => {
                    if trouble == reason {
                        debug!(task = %self.id, reason, "task still can't go on");
                    } else {
                        warn!(task = %self.id, reason, "task can't go on, try again until it can");
                        trouble = reason;
                    }
                    let wait = backoff.pause(&mut rand::rng());
                    tokio::time::timeout(wait, self.goal.changed()).await.is_ok_and(|changed| changed.is_ok())
                        || !self.context.updates.is_closed()
                }
                Taken::Gone => return,
            };
            if !alive {
                return;
            }
        }
    }

    async fn look(&mut self, goal: &Goal) -> Result<Option<ContainerFacts>, RuntimeError> {
        match std::mem::take(&mut self.known) {
            KnownContainer::Made(facts) => Ok(Some(facts)),
            // A container that is to end must not be missed.
            KnownContainer::Absent if goal.desired < TaskState::Shutdown => Ok(None),
            KnownContainer::Absent | KnownContainer::None => {
                // The driver may have waited, and anything may have happened meanwhile.
                self.made_networks.clear();
                self.context.runtime.inspect(&self.container(goal)).await
            }
        }
    }

    /// Publishes the addresses of the container, and what it may ask the name server.
    fn publish(&self, goal: &Goal, seen: Option<&ContainerFacts>) {
        let local = &self.context.local;
        local.describe(&self.id, Asker::of(&goal.assignment));
        match seen {
            Some(seen) if seen.phase == Phase::Running => {
                local.set(&self.id, &known_addresses(&goal.assignment, seen.address));
            }
            Some(_) | None => local.set(&self.id, &[]),
        }
    }

    /// Takes steps until one changed the container or there is none.
    async fn advance(&mut self, goal: &Goal, seen: Option<&ContainerFacts>) -> Taken {
        loop {
            let situation = Situation {
                desired: goal.desired,
                container: seen,
                last: &self.last,
                link: self.link,
                drains: !matches!(self.drain, DrainStage::Over) && goal.assignment.task.is_in_mesh(),
            };
            let step = next(now(), &situation);
            debug!(task = %self.id, ?step, "next step");
            match self.take(step, goal, seen).await {
                Taken::Reported => {}
                other => return other,
            }
        }
    }

    async fn take(&mut self, step: TaskStep, goal: &Goal, seen: Option<&ContainerFacts>) -> Taken {
        let container = self.container(goal);
        match step {
            TaskStep::Report(status) => self.report(status).await,
            TaskStep::Prepare => self.prepare(goal).await,
            TaskStep::Start => self.start(goal, seen).await,
            TaskStep::Join => self.join(goal, seen).await,
            TaskStep::Leave => {
                self.context.network.stopped(&self.id).await;
                self.link = MeshLink::Apart;
                Taken::Reported
            }
            TaskStep::Drain => self.drain(goal, seen).await,
            TaskStep::Stop => {
                let grace = container_spec::grace(&goal.assignment);
                info!(task = %self.id, container, ?grace, "stop container");
                done(self.context.runtime.stop(&container, grace).await)
            }
            TaskStep::Remove => done(self.context.runtime.remove(&container).await),
            TaskStep::Wait => Taken::Idle,
            TaskStep::Forget => match self.context.updates.send(DriverUpdate::Gone(self.id.clone())).await {
                Ok(()) | Err(_) => Taken::Gone,
            },
        }
    }

    async fn join(&mut self, goal: &Goal, seen: Option<&ContainerFacts>) -> Taken {
        let Some(seen) = seen else { return Taken::Done };
        let has_address = seen.address.is_some() || container_spec::is_confined(&goal.assignment);
        let (true, Ok(pid)) = (has_address, u32::try_from(seen.pid)) else {
            let reason = "its container has no address on the Docker network mesh";
            self.note(reason).await;
            return Taken::Retry(reason.to_owned());
        };
        // If it ran before, as after a restart of the agent, it has clients already.
        if self.last.state < TaskState::Running && !self.until_listening(pid, goal).await {
            return Taken::Done;
        }
        let task = RunningTask {
            task_id: self.id.clone(),
            container_id: seen.id.clone(),
            pid,
            address: seen.address,
            address6: seen.address6,
            networks: addresses(&goal.assignment),
        };
        match self.context.network.started(&task).await {
            Ok(()) => {
                self.link = MeshLink::Joined { pid: seen.pid, address: seen.address };
                Taken::Reported
            }
            Err(error) => {
                self.note(&error.to_string()).await;
                Taken::Retry(error.to_string())
            }
        }
    }

    /// Waits until the task listens, or the limit has passed; `false` if something changed before.
    async fn until_listening(&mut self, pid: u32, goal: &Goal) -> bool {
        let until = *self.listens_until.get_or_insert_with(|| Instant::now() + listening::LIMIT);
        while !listening::is_ready(pid, &goal.assignment.task) {
            if Instant::now() >= until {
                info!(task = %self.id, limit = ?listening::LIMIT, "task does not listen yet");
                return true;
            }
            if tokio::time::timeout(listening::PAUSE, self.until_changed()).await.is_ok() {
                return false;
            }
        }
        true
    }

    /// Waits until the task's flows have ended, or the limit has passed, or something changed.
    async fn drain(&mut self, goal: &Goal, seen: Option<&ContainerFacts>) -> Taken {
        let Some(pid) = seen.and_then(|seen| u32::try_from(seen.pid).ok()) else { return Taken::Done };
        let mut progress = match std::mem::take(&mut self.drain) {
            DrainStage::Underway(progress) => progress,
            DrainStage::Ahead | DrainStage::Over => {
                info!(task = %self.id, limit_s = goal.assignment.drain.limit_s, "drain task");
                DrainProgress::begin(Instant::now())
            }
        };
        let mut is_told = false;
        let taken = loop {
            let flows = match progress.counts(Instant::now(), &goal.assignment, pid) {
                None => None,
                Some(draining) => match self.context.network.flows_left(&draining).await {
                    Ok(flows) => Some(flows),
                    Err(error) => {
                        if !std::mem::replace(&mut is_told, true) {
                            warn!(task = %self.id, error = mesh_runtime::error_chain(&error), "can't count the task's flows");
                        }
                        None
                    }
                },
            };
            match progress.judge(Instant::now(), goal.assignment.drain, flows) {
                DrainVerdict::Over => break Taken::Reported,
                DrainVerdict::Late { flows } => {
                    info!(task = %self.id, flows, "the drain's limit has passed: stop the task though flows go on");
                    break Taken::Reported;
                }
                DrainVerdict::Wait { pause } => match tokio::time::timeout(pause, self.until_changed()).await
                {
                    Err(_) => {}
                    Ok(true) => break Taken::Done,
                    Ok(false) => break Taken::Gone,
                },
            }
        };
        self.drain =
            if matches!(taken, Taken::Reported) { DrainStage::Over } else { DrainStage::Underway(progress) };
        taken
    }

    /// Reports why the task waits, without changing its state.
    async fn note(&mut self, reason: &str) {
        if self.last.err != reason {
            let status = TaskStatus { err: reason.to_owned(), timestamp: now(), ..self.last.clone() };
            self.report(status).await;
        }
    }

    async fn fail(&mut self, reason: &str) -> Taken {
        let status = failure(now(), &self.last, reason);
        self.report(status).await
    }

    async fn report(&mut self, status: TaskStatus) -> Taken {
        info!(task = %self.id, state = status.state.as_str(), err = status.err, "task");
        self.last = std::mem::take(&mut self.last).advance(status);
        if self.last.state.is_terminal() {
            self.context.dependencies.remove(&self.id).await;
        }
        match self.context.updates.send(DriverUpdate::Status(self.id.clone(), self.last.clone())).await {
            Ok(()) => Taken::Reported,
            Err(_) => Taken::Gone,
        }
    }

    /// Waits until something may have changed; `false` when the worker is gone.
    async fn until_changed(&mut self) -> bool {
        tokio::select! {
            () = self.nudge.notified() => true,
            changed = self.goal.changed() => changed.is_ok(),
        }
    }

    /// The container's id if it is known, else its name.
    fn container(&self, goal: &Goal) -> String {
        match &self.last.container {
            Some(container) => container.container_id.clone(),
            None => container_spec::container_name(&goal.assignment),
        }
    }
}

/// Stops and removes a container that no task owns.
pub(super) async fn end_orphan(
    context: &DriverContext,
    task: &TaskId,
    container: &str,
) -> Result<(), RuntimeError> {
    context.runtime.stop(container, stop_grace(None)).await?;
    context.network.stopped(task).await;
    context.runtime.remove(container).await
}

fn done(result: Result<(), RuntimeError>) -> Taken {
    match result {
        Ok(()) => Taken::Done,
        Err(error) => Taken::Retry(error.to_string()),
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}
