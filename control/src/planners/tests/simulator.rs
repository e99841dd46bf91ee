//! A cluster in simulated time: the planners' plans are committed as they come, and nodes act as
//! agents do.
//!
//! One seed decides everything. After each pass, the invariants that hold at every moment are
//! checked.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use mesh_state::Timestamp;
use mesh_state::ids::{NodeId, ServiceId, TaskId};
use mesh_state::node::NodeState;
use mesh_state::spec::UpdateOrder;
use mesh_state::task::{Slot, Task, TaskState, TaskStatus};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng};

use super::addresses::Held;
use crate::fixtures::World;
use crate::planners::{ORDER, Planner};
use crate::slots::eligible::Suits;

/// How the nodes of a simulation behave.
#[derive(Debug, Clone)]
pub(super) struct Behaviour {
    /// Of a thousand steps of a running task, how many kill it.
    pub(super) failures_per_mille: u32,
    /// Of a hundred plans, how many are committed only in part, as when a transaction after the
    /// first meets a conflict.
    pub(super) cuts_percent: u32,
    /// Tasks with this image never begin to run.
    pub(super) broken_image: Option<String>,
    /// How far the clocks of nodes are ahead of the leader's.
    pub(super) ahead: BTreeMap<NodeId, TimeDelta>,
}

/// A simulated cluster.
pub(super) struct Simulation {
    pub(super) world: World,
    pub(super) behaviour: Behaviour,
    dice: StdRng,
    /// Nodes without power: they report nothing, and are silent after 3 s.
    dead: BTreeMap<NodeId, Timestamp>,
    /// The planners' reasons.
    pub(super) log: Vec<String>,
    /// Whether nodes acknowledge mesh tables.
    pub(super) acknowledges: bool,
    /// The fewest tasks of each service that ran at the end of any second since this map was
    /// cleared.
    pub(super) fewest_running: BTreeMap<ServiceId, usize>,
    held: Held,
}

impl Simulation {
    pub(super) fn new(world: World, seed: u64) -> Self {
        let behaviour =
            Behaviour { failures_per_mille: 0, cuts_percent: 0, broken_image: None, ahead: BTreeMap::new() };
        Self {
            world,
            behaviour,
            dice: StdRng::seed_from_u64(seed),
            dead: BTreeMap::new(),
            log: Vec::new(),
            acknowledges: true,
            fewest_running: BTreeMap::new(),
            held: Held::default(),
        }
    }

    /// Cuts a node's power.
    pub(super) fn kill(&mut self, node: &str) {
        self.dead.insert(node.into(), self.world.now);
    }

    /// Gives a node its power back: it is heard again, and its containers are gone.
    pub(super) fn revive(&mut self, node: &str) {
        let id = NodeId::from(node);
        self.dead.remove(&id);
        self.world.set_liveness(&id, NodeState::Ready);
        let held: Vec<TaskId> = self.world.snapshot.tasks_on(&id).map(|task| task.id.clone()).collect();
        for task in held {
            let state = self.state(&task);
            if state >= TaskState::Starting && !state.is_terminal() {
                self.world.report(&task, TaskState::Failed);
            }
        }
    }

    /// Makes another manager the leader, which has seen everything that the one before saw, by a
    /// clock that is `ahead`.
    pub(super) fn lead_by_a_clock_ahead(&mut self, ahead: TimeDelta) {
        self.world.now += ahead;
        self.world.snapshot.as_seen_by_a_clock_ahead(ahead);
        self.dead.values_mut().for_each(|since| *since += ahead);
        // The nodes' clocks stay as they were.
        self.behaviour.ahead.values_mut().for_each(|node| *node -= ahead);
    }

    /// Lets one second pass: planners run, then nodes act.
    pub(super) fn second(&mut self) {
        self.plan();
        self.world.pass(1);
        self.notice_silence();
        self.nodes_act();
        self.acknowledge();
        self.plan();
        for service in self.world.snapshot.services.keys() {
            let running = self.running(service.as_str()).len();
            let fewest = self.fewest_running.entry(service.clone()).or_insert(running);
            *fewest = running.min(*fewest);
        }
    }

    /// Lets living nodes acknowledge the newest mesh table.
    fn acknowledge(&mut self) {
        let generation = u64::try_from(self.world.snapshot.mesh_revision).unwrap();
        let nodes: Vec<NodeId> = self.world.snapshot.nodes.keys().cloned().collect();
        for node in nodes.iter().filter(|node| !self.dead.contains_key(node)) {
            let held = self.world.snapshot.acks.get(node).map_or(0, |ack| ack.value);
            if held < generation && self.acknowledges {
                self.world.put(mesh_state::keys::ack(node), &generation);
            }
        }
    }

    pub(super) fn seconds(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.second();
        }
    }

    /// Runs until no planner plans anything and nodes have nothing to do; fails after `limit`
    /// seconds.
    pub(super) fn settle(&mut self, limit: u32) {
        let mut quiet = 0;
        for _ in 0..limit {
            let revision = self.world.snapshot.revision;
            self.second();
            let rests = self.world.snapshot.revision == revision && self.next_wake().is_none();
            quiet = if rests { quiet + 1 } else { 0 };
            // Nodes are slow at times; so many slow steps in a row don't happen.
            if quiet == 12 {
                return;
            }
        }
        panic!("not settled after {limit} simulated seconds:\n{}", self.describe());
    }

    /// Runs the planners until none plans anything; each must plan nothing on its own result.
    fn plan(&mut self) {
        for round in 0..30 {
            let mut quiet = true;
            for planner in ORDER {
                let plan = (planner.plan)(self.world.now, &self.world.snapshot, &mut self.world.rng);
                self.log.extend(
                    plan.reasons
                        .iter()
                        .map(|reason| format!("{} {}: {reason}", self.world.now, planner.name)),
                );
                quiet &= plan.actions.is_empty();
                if self.dice.random_range(0..100) < self.behaviour.cuts_percent {
                    let until = self.dice.random_range(0..=plan.actions.len());
                    self.world.commit_actions(&plan.actions[..until]);
                } else {
                    self.world.commit(&plan);
                    self.rests(planner);
                }
                self.check();
            }
            if quiet {
                return;
            }
            assert!(round < 29, "planners don't come to rest:\n{}", self.describe());
        }
    }

    /// Checks that a planner plans nothing on its own result. An update may have its next step at
    /// hand.
    fn rests(&mut self, planner: &Planner) {
        let steps_max = if planner.name == "updater" { 3 } else { 0 };
        for _ in 0..steps_max {
            let plan = (planner.plan)(self.world.now, &self.world.snapshot, &mut self.world.rng);
            self.world.commit(&plan);
        }
        let again = (planner.plan)(self.world.now, &self.world.snapshot, &mut self.world.rng);
        assert!(again.actions.is_empty(), "{} planned on its own result: {again:#?}", planner.name);
    }

    fn next_wake(&mut self) -> Option<Timestamp> {
        let world = &mut self.world;
        let soon = world.now + TimeDelta::hours(1);
        let wakes =
            ORDER.iter().filter_map(|one| (one.plan)(world.now, &world.snapshot, &mut world.rng).wake_at);
        wakes.filter(|moment| *moment < soon).min()
    }

    fn notice_silence(&mut self) {
        for (node, since) in self.dead.clone() {
            let silent = self.world.now - since >= TimeDelta::seconds(3);
            if silent && self.world.snapshot.node_state(&node) == NodeState::Ready {
                self.world.set_liveness(&node, NodeState::Silent);
            }
        }
    }

    fn nodes_act(&mut self) {
        let tasks: Vec<Task> = self.world.snapshot.tasks.values().map(|task| task.value.clone()).collect();
        for task in tasks {
            if task.node_id.as_ref().is_some_and(|node| !self.dead.contains_key(node)) {
                self.act(&task);
            }
        }
    }

    /// One step of a task on its node.
    fn act(&mut self, task: &Task) {
        let state = self.state(&task.id);
        let wanted = task.desired_state;
        let next = match state {
            _ if state.is_terminal() => return,
            _ if wanted > TaskState::Running => TaskState::Shutdown,
            TaskState::Running if self.dice.random_range(0..1000) < self.behaviour.failures_per_mille => {
                TaskState::Failed
            }
            TaskState::Running => return,
            TaskState::Preparing if self.is_broken(task) => TaskState::Rejected,
            TaskState::Starting => TaskState::Running,
            TaskState::Ready if wanted == TaskState::Ready => return,
            TaskState::Ready => TaskState::Starting,
            TaskState::Preparing => TaskState::Ready,
            _ => TaskState::Preparing,
        };
        // Some steps take longer.
        if self.dice.random_range(0..4) > 0 {
            let ahead = task.node_id.as_ref().and_then(|node| self.behaviour.ahead.get(node));
            let timestamp = self.world.now + ahead.copied().unwrap_or_default();
            self.world
                .report_status(&task.id, TaskStatus { state: next, timestamp, ..TaskStatus::default() });
        }
    }

    fn is_broken(&self, task: &Task) -> bool {
        let image =
            self.world.snapshot.spec_of(task).and_then(|spec| spec.task_template.container_spec.as_ref());
        image.is_some_and(|container| Some(&container.image) == self.behaviour.broken_image.as_ref())
    }

    fn state(&self, id: &TaskId) -> TaskState {
        self.world.snapshot.tasks.get(id).map_or(TaskState::New, |task| self.world.snapshot.state_of(task))
    }

    /// Checks what holds at every moment.
    fn check(&mut self) {
        let snapshot = &self.world.snapshot;
        self.held.check(snapshot);
        let mut wanted: BTreeMap<(&str, &Slot), Vec<&Task>> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for task in snapshot.tasks.values() {
            for id in task.backend_ids() {
                assert!(ids.insert(id), "backend {id:?} is given twice");
            }
            if task.desired_state == TaskState::Running && !snapshot.state_of(task).is_terminal() {
                wanted.entry((task.service_id.as_str(), &task.slot)).or_default().push(task);
            }
            if let (Slot::Node(slot), Some(node)) = (&task.slot, &task.node_id) {
                assert_eq!(slot, node, "a global task is on another node than its slot");
            }
        }
        for ((service, slot), tasks) in wanted {
            let spec = snapshot.services.get(&service.into()).map(|stored| &stored.spec);
            let start_first = |config: Option<&mesh_state::spec::UpdateConfig>| {
                config.is_some_and(|config| config.order == Some(UpdateOrder::StartFirst))
            };
            let both = spec.is_some_and(|spec| {
                start_first(spec.update_config.as_ref()) || start_first(spec.rollback_config.as_ref())
            });
            assert!(
                tasks.len() == 1 || both && tasks.len() == 2,
                "{} tasks are to run in slot {slot} of {service}:\n{}",
                tasks.len(),
                self.describe()
            );
        }
    }

    /// The running tasks of a service.
    pub(super) fn running(&self, service: &str) -> Vec<Task> {
        let snapshot = &self.world.snapshot;
        let wanted = self.world.wanted(service).into_iter();
        wanted.filter(|task| snapshot.state_of(task) == TaskState::Running).collect()
    }

    /// Checks what holds once all is settled: as many tasks as wanted run, on eligible nodes, and
    /// no other task is alive.
    pub(super) fn check_settled(&self, service: &str, replicas: usize) {
        let snapshot = &self.world.snapshot;
        let running = self.running(service);
        assert_eq!(running.len(), replicas, "running tasks of {service}:\n{}", self.describe());
        let slots: BTreeSet<&Slot> = running.iter().map(|task| &task.slot).collect();
        assert_eq!(slots.len(), replicas, "slots of {service}:\n{}", self.describe());
        let spec = &snapshot.services[&service.into()].spec;
        let suits = Suits::new(&spec.task_template);
        for task in &running {
            let id = task.node_id.as_ref().unwrap();
            assert!(suits.node(&snapshot.nodes[id]), "task {} is on unfit node {id}", task.id);
            assert_ne!(
                snapshot.node_state(id),
                NodeState::Down,
                "task {} runs on a node that is down",
                task.id
            );
        }
        for task in snapshot.tasks_of(&service.into()) {
            let lost = task.node_id.as_ref().is_some_and(|id| snapshot.is_lost(id));
            let alive = !snapshot.state_of(task).is_terminal() && !lost;
            assert!(
                !alive || task.desired_state == TaskState::Running,
                "task {} lives unwanted:\n{}",
                task.id,
                self.describe()
            );
        }
    }

    /// How many tasks of a service run on each node.
    pub(super) fn spread(&self, service: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for task in self.running(service) {
            *counts.entry(task.node_id.unwrap().to_string()).or_default() += 1;
        }
        counts
    }

    pub(super) fn describe(&self) -> String {
        let snapshot = &self.world.snapshot;
        let mut lines: Vec<String> = self.log.iter().rev().take(30).rev().cloned().collect();
        for service in snapshot.services.values() {
            lines.push(format!(
                "service {} v{}: {:?}",
                service.id, service.spec_version, service.update_status
            ));
        }
        for task in snapshot.tasks.values() {
            lines.push(format!(
                "{}.{} {} v{} on {:?}: desired {:?} observed {:?} created r{} after {:?} {}",
                task.service_id,
                task.slot,
                &task.id.as_str()[..4],
                task.spec_version,
                task.node_id.as_ref().map(NodeId::as_str),
                task.desired_state,
                snapshot.state_of(task),
                task.create_revision,
                task.start_after,
                snapshot.error_of(task),
            ));
        }
        lines.join("\n")
    }
}
