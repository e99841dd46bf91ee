//! Owns the set of this node's tasks: one driver each, kept in step with what control assigned,
//! cached on disk.
//!
//! Invariants: this loop alone owns the set. It never waits for the engine, the disk or a manager:
//! drivers call the engine, a writer the disk, and of each task only the latest status waits to be
//! sent. Containers that no task owns are stopped only after a full list from control.

mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::TaskId;
use mesh_state::task::{Assignment, TaskState, TaskStatus};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::bridge::BridgePlan;
use super::cache::{CachedTask, TaskCache};
use super::container_spec::NodeIdentity;
use super::dependencies::Dependencies;
use super::drain::DrainStage;
use super::driver::{BridgeState, Driver, DriverContext, DriverUpdate, Goal, KnownContainer, end_orphan};
use super::engine_watch::{EngineEvent, follow_events, follow_joins, keep_bridge};
use super::local::LocalTasks;
use super::network::TaskNetwork;
use super::networks::keeper::Networks;
use super::runtime::Runtime;
use super::transition::MeshLink;
use crate::control_link::AssignmentChange;
use writer::Writer;

/// How often every container is inspected, whatever the events said.
const FULL_PASS: Duration = Duration::from_secs(30);
const CHANNEL_CAPACITY: usize = 256;

/// Dependencies of the worker.
pub struct WorkerDeps {
    /// The container engine.
    pub runtime: Arc<dyn Runtime>,
    /// Connects tasks to the mesh.
    pub network: Arc<dyn TaskNetwork>,
    /// Makes and removes the networks of the tasks' services.
    pub networks: Arc<Networks>,
    /// Publishes the tasks' addresses.
    pub local: Arc<LocalTasks>,
    /// This node, for labels and templates.
    pub node: NodeIdentity,
    /// Secrets and configs.
    pub dependencies: Dependencies,
    /// The tasks' network as it should be.
    pub bridge: watch::Receiver<BridgePlan>,
    /// Publishes why this node can take no tasks; `None` if it can.
    pub unfit: watch::Sender<Option<String>>,
    /// The tasks that this node ran before.
    pub cache: TaskCache,
}

/// Runs the assigned tasks until `shutdown`. Containers keep running then: the next agent adopts
/// them.
pub async fn run(
    deps: WorkerDeps,
    mut assignments: mpsc::Receiver<AssignmentChange>,
    statuses: mpsc::Sender<(TaskId, TaskStatus)>,
    shutdown: CancellationToken,
) {
    let (updates_in, mut updates) = mpsc::channel(CHANNEL_CAPACITY);
    let (heard_in, mut heard) = mpsc::channel(CHANNEL_CAPACITY);
    let (orphans_in, mut listed) = mpsc::channel(1);
    let (bridge_in, bridge) =
        watch::channel(BridgeState::NotYet("the Docker network mesh is not made yet".to_owned()));
    let mut side = JoinSet::new();
    side.spawn(follow_events(Arc::clone(&deps.runtime), heard_in.clone()));
    side.spawn(follow_joins(Arc::clone(&deps.runtime), heard_in));
    side.spawn(keep_bridge(Arc::clone(&deps.runtime), deps.bridge.clone(), bridge_in, deps.unfit));
    let sweeper = Arc::clone(&deps.networks);
    side.spawn(async move { sweeper.remove_unneeded().await });
    let context = DriverContext {
        runtime: deps.runtime,
        network: deps.network,
        local: deps.local,
        networks: deps.networks,
        node: Arc::new(deps.node),
        dependencies: Arc::new(deps.dependencies),
        bridge,
        updates: updates_in,
    };
    let mut worker = Worker::new(context, deps.cache);
    worker.resume().await;
    let mut full_pass = tokio::time::interval(FULL_PASS);
    full_pass.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(change) = assignments.recv() => {
                let full = matches!(change, AssignmentChange::Full(_));
                worker.apply(change);
                if full {
                    worker.list_containers(&orphans_in);
                }
            }
            Some(update) = updates.recv() => worker.observe(update),
            Some(heard) = heard.recv() => worker.nudge(&heard),
            Some(containers) = listed.recv() => worker.end_orphans(containers),
            _ = full_pass.tick() => {
                worker.nudge(&EngineEvent::Resumed);
                worker.list_containers(&orphans_in);
            }
            Ok(permit) = statuses.reserve(), if worker.has_outgoing() => {
                if let Some(status) = worker.outgoing.pop_first() {
                    permit.send(status);
                }
            }
            Some(ended) = worker.drivers.join_next(), if !worker.drivers.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    error!(error = mesh_runtime::error_chain(&error), "a task's driver ended by itself");
                }
            }
            () = worker.writer.done(), if worker.writer.busy() => worker.write(),
        }
    }
    worker.flush().await;
}

/// A task of this node, with its driver's channels.
struct KnownTask {
    goal: watch::Sender<Goal>,
    nudge: Arc<Notify>,
    status: TaskStatus,
    /// Whether the status is reported to control; not so once the task was taken from this node.
    ours: bool,
}

struct Worker {
    context: DriverContext,
    cache: TaskCache,
    tasks: BTreeMap<TaskId, KnownTask>,
    drivers: JoinSet<()>,
    /// The latest status of each task that waits for the link to control.
    outgoing: BTreeMap<TaskId, TaskStatus>,
    /// Tasks whose cached form is out of date.
    dirty: BTreeSet<TaskId>,
    writer: Writer,
    /// Whether a full list came, so that containers that are not in it are orphans.
    complete: bool,
}

impl Worker {
    fn new(context: DriverContext, cache: TaskCache) -> Self {
        Self {
            context,
            cache,
            tasks: BTreeMap::new(),
            drivers: JoinSet::new(),
            outgoing: BTreeMap::new(),
            dirty: BTreeSet::new(),
            writer: Writer::default(),
            complete: false,
        }
    }

    fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Continues with the tasks that this node ran before.
    async fn resume(&mut self) {
        let cache = self.cache.clone();
        match tokio::task::spawn_blocking(move || cache.load()).await {
            Ok(Ok(tasks)) => {
                info!(tasks = tasks.len(), "resume cached tasks");
                for task in tasks {
                    self.drive(task.assignment, task.status);
                }
            }
            Ok(Err(error)) => warn!(
                error = mesh_runtime::error_chain(&error),
                "can't load the cached tasks: start without them"
            ),
            Err(error) => warn!(
                error = mesh_runtime::error_chain(&error),
                "can't load the cached tasks: start without them"
            ),
        }
    }

    fn apply(&mut self, change: AssignmentChange) {
        let (set, removed) = match change {
            AssignmentChange::Full(set) => {
                let named: BTreeSet<&TaskId> = set.iter().map(|assignment| &assignment.task.id).collect();
                let removed = self.tasks.keys().filter(|id| !named.contains(id)).cloned().collect();
                self.complete = true;
                // A manager that was away may have missed any of them.
                let unsent = self.tasks.iter().filter(|(id, _)| named.contains(id));
                self.outgoing.extend(unsent.map(|(id, known)| (id.clone(), known.status.clone())));
                (set, removed)
            }
            AssignmentChange::Delta { set, removed } => (set, removed),
            AssignmentChange::Dependency(delivered) => {
                let goals = self.goals();
                return self.context.dependencies.take(delivered, in_force(&goals));
            }
        };
        for id in removed {
            self.take_away(&id);
        }
        // Before a driver makes them.
        self.need_networks(&set);
        for assignment in set {
            let id = assignment.task.id.clone();
            if let Some(known) = self.tasks.get_mut(&id) {
                known.ours = true;
                let desired = assignment.task.desired_state;
                known.goal.send_replace(Goal { assignment: Arc::new(assignment), desired });
            } else {
                self.drive(assignment, TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() });
            }
            self.dirty.insert(id);
        }
        self.context.dependencies.keep_needed(in_force(&self.goals()));
        self.write();
    }

    /// Tells which networks the tasks that have not ended need, and those in `coming`.
    fn need_networks(&self, coming: &[Assignment]) {
        if self.complete {
            let living = self.tasks.values().filter(|known| !known.status.state.is_terminal());
            let goals: Vec<Goal> = living.map(|known| known.goal.borrow().clone()).collect();
            let known = goals.iter().flat_map(|goal| &goal.assignment.networks);
            let coming = coming.iter().flat_map(|assignment| &assignment.networks);
            self.context.networks.need(known.chain(coming).map(|network| network.id.clone()).collect());
        }
    }

    fn goals(&self) -> Vec<Goal> {
        self.tasks.values().map(|known| known.goal.borrow().clone()).collect()
    }

    /// The task is no longer this node's: its container is stopped and removed, and its status is
    /// reported no more.
    fn take_away(&mut self, id: &TaskId) {
        if let Some(known) = self.tasks.get_mut(id) {
            known.ours = false;
            known.goal.send_modify(|goal| {
                goal.desired = TaskState::Remove;
                // No manager would announce its drain to other nodes any more.
                Arc::make_mut(&mut goal.assignment).drain.limit_s = 0;
            });
            self.outgoing.remove(id);
        }
    }

    fn drive(&mut self, assignment: Assignment, status: TaskStatus) {
        let id = assignment.task.id.clone();
        let desired = assignment.task.desired_state;
        let (goal_in, goal) = watch::channel(Goal { assignment: Arc::new(assignment), desired });
        let nudge = Arc::new(Notify::new());
        let link = if status.state < TaskState::Starting { MeshLink::Apart } else { MeshLink::Unknown };
        let driver = Driver {
            context: self.context.clone(),
            id: id.clone(),
            goal,
            nudge: Arc::clone(&nudge),
            last: status.clone(),
            link,
            drain: DrainStage::default(),
            listens_until: None,
            hindered_since: None,
            known: if status.state == TaskState::Assigned {
                KnownContainer::Absent
            } else {
                KnownContainer::None
            },
            made_networks: Vec::new(),
        };
        self.tasks.insert(id, KnownTask { goal: goal_in, nudge, status, ours: true });
        self.drivers.spawn(driver.run());
    }

    fn observe(&mut self, update: DriverUpdate) {
        match update {
            DriverUpdate::Status(id, status) => {
                let Some(known) = self.tasks.get_mut(&id) else { return };
                let has_ended = status.state.is_terminal();
                known.status = status.clone();
                if known.ours {
                    self.outgoing.insert(id.clone(), status);
                }
                self.dirty.insert(id);
                if has_ended {
                    self.need_networks(&[]);
                }
            }
            DriverUpdate::Gone(id) => {
                self.tasks.remove(&id);
                self.dirty.insert(id);
                self.need_networks(&[]);
            }
        }
        self.write();
    }

    fn nudge(&self, heard: &EngineEvent) {
        match heard {
            EngineEvent::Task(id) => {
                if let Some(known) = self.tasks.get(id) {
                    known.nudge.notify_one();
                }
            }
            EngineEvent::Address(id, address) => {
                if self.tasks.contains_key(id) {
                    self.context.local.add(id, *address);
                }
            }
            EngineEvent::Resumed => self.tasks.values().for_each(|known| known.nudge.notify_one()),
        }
    }

    /// Asks the engine for its task containers, once it is known which tasks are this node's. The
    /// answer comes back to the loop, so a task that came meanwhile is not taken for an orphan.
    fn list_containers(&mut self, answer: &mpsc::Sender<Vec<(TaskId, String)>>) {
        let Ok(permit) = answer.clone().try_reserve_owned() else { return };
        if self.complete {
            let runtime = Arc::clone(&self.context.runtime);
            self.drivers.spawn(async move {
                match runtime.task_containers().await {
                    Ok(containers) => drop(permit.send(containers)),
                    Err(error) => {
                        warn!(error = mesh_runtime::error_chain(&error), "can't list the tasks' containers");
                    }
                }
            });
        }
    }

    fn end_orphans(&mut self, containers: Vec<(TaskId, String)>) {
        let living = self.tasks.iter().filter(|(_, known)| !known.status.state.is_terminal());
        let living: BTreeSet<TaskId> = living.map(|(id, _)| id.clone()).collect();
        // Swept at once, before another task can be added; the files are in memory, so it takes no
        // time to speak of.
        self.context.dependencies.sweep(&living);
        for (task, container) in containers {
            if !self.tasks.contains_key(&task) {
                info!(%task, container, "stop a container that no task owns");
                let context = self.context.clone();
                self.drivers.spawn(async move {
                    if let Err(error) = end_orphan(&context, &task, &container).await {
                        warn!(%task, container, error = mesh_runtime::error_chain(&error), "can't stop a container that no task owns");
                    }
                });
            }
        }
    }

    /// Gives the out-of-date cached forms to the writer, unless it is busy.
    fn write(&mut self) {
        if self.dirty.is_empty() || self.writer.busy() {
            return;
        }
        let changes: Vec<(TaskId, Option<CachedTask>)> = std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|id| {
                let task = self.tasks.get(&id).map(|known| CachedTask {
                    assignment: without_credentials(&known.goal.borrow().assignment),
                    status: known.status.clone(),
                });
                (id, task)
            })
            .collect();
        self.writer.begin(self.cache.clone(), changes);
    }

    /// Writes what is still to be written.
    async fn flush(&mut self) {
        while self.writer.busy() {
            self.writer.done().await;
            self.write();
        }
    }
}

/// The tasks, each with its desired state.
fn in_force(goals: &[Goal]) -> impl Iterator<Item = (&Assignment, TaskState)> {
    goals.iter().map(|goal| (goal.assignment.as_ref(), goal.desired))
}

/// The part of an assignment that may be written to disk.
fn without_credentials(assignment: &Assignment) -> Assignment {
    Assignment { registry_auth: None, ..assignment.clone() }
}

#[cfg(test)]
pub(in crate::task) mod tests;
