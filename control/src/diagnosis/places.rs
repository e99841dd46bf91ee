//! The places of a service: its slots, those that have no task yet too, and how each is filled.

use chrono::TimeDelta;
use mesh_state::Timestamp;
use mesh_state::node::Availability;
use mesh_state::service::Service;
use mesh_state::task::{Slot, Task, TaskState};

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::slots::eligible::{Suits, takes_new};
use crate::slots::{self, Filling, SlotTasks};

/// How long a place may be without a running task before that is a problem: images are pulled, and
/// tasks start.
const STARTING: TimeDelta = TimeDelta::seconds(30);
/// A place is in a crash loop if so many of its tasks failed within [`CRASHES_WITHIN`].
pub(super) const CRASHES: usize = 3;
const CRASHES_WITHIN: TimeDelta = TimeDelta::minutes(10);

/// A slot of a service and its tasks.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) slot: Slot,
    /// The slot's tasks, newest first; none if no task was made yet.
    pub(super) tasks: SlotTasks<'a>,
    /// Whether the service wants a running task here: no if it is a job, or if the slot's node may
    /// not run a global service's task.
    pub(super) is_wanted: bool,
}

/// How a place is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// A task runs on a node that is heard.
    Runs,
    /// Nothing runs, and nothing should.
    Idle,
    /// Nothing runs yet, which is usual for a while.
    Starts,
    /// Nothing runs, and that needs a person.
    Lacks,
}

/// The places of a service, in order. Those of a replicated service are as many as its replicas.
pub(super) fn of<'a>(snapshot: &'a ClusterSnapshot, service: &Service) -> Vec<Place<'a>> {
    let slots = slots::of(snapshot, &service.id);
    let suits = Suits::new(&service.spec.task_template);
    let is_job = service.job.is_some();
    let is_wanted = |slot: &Slot, tasks: &[&Stored<Task>]| match slot {
        _ if is_job => false,
        Slot::Number(_) => true,
        Slot::Node(id) => snapshot.nodes.get(id).is_some_and(|node| {
            // As the global planner decides: a paused node keeps its task and gets no new one.
            let stays = node.spec.availability != Availability::Drain && suits.node(node);
            (stays && tasks.iter().any(|task| slots::is_wanted(task))) || takes_new(snapshot, node, &suits)
        }),
    };
    let missing = unmade(snapshot, service, &suits, |slot| slots.contains_key(slot));
    let mut places: Vec<Place<'a>> = missing
        .into_iter()
        .map(|slot| Place { slot, tasks: Vec::new(), is_wanted: true })
        .chain(slots.iter().map(|(slot, tasks)| Place {
            slot: (*slot).clone(),
            tasks: tasks.clone(),
            is_wanted: is_wanted(slot, tasks),
        }))
        .collect();
    places.sort_by(|one, other| one.slot.cmp(&other.slot));
    places
}

/// The slots for which no task was made yet.
fn unmade(
    snapshot: &ClusterSnapshot,
    service: &Service,
    suits: &Suits,
    is_made: impl Fn(&Slot) -> bool,
) -> Vec<Slot> {
    if service.job.is_some() {
        return Vec::new();
    }
    if slots::is_global(&service.spec) {
        let takers = snapshot.nodes.values().filter(|node| takes_new(snapshot, node, suits));
        return takers.map(|node| Slot::Node(node.id.clone())).filter(|slot| !is_made(slot)).collect();
    }
    let wanted = usize::try_from(service.spec.mode.replicas().unwrap_or(0)).unwrap_or(usize::MAX);
    let made = slots::of(snapshot, &service.id).len();
    let free = (1..).map(Slot::Number).filter(|slot| !is_made(slot));
    free.take(wanted.saturating_sub(made)).collect()
}

/// How many of the places should have a running task, and how many do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    /// Places where a task runs.
    pub(super) running: usize,
    /// Those, and places where none runs although one should.
    pub(super) wanted: usize,
}

impl Tally {
    /// Counts the places of a service.
    pub(super) fn of(
        now: Timestamp,
        snapshot: &ClusterSnapshot,
        service: &Service,
        places: &[Place<'_>],
    ) -> Self {
        let conditions = places.iter().map(|place| place.condition(now, snapshot, service));
        let counted: Vec<Condition> = conditions.filter(|condition| *condition != Condition::Idle).collect();
        let running = counted.iter().filter(|condition| **condition == Condition::Runs).count();
        Self { running, wanted: counted.len() }
    }

    /// `2 of 3 tasks run`.
    pub(super) fn text(self) -> String {
        let Self { running, wanted } = self;
        format!("{running} of {wanted} {}", if wanted == 1 { "task runs" } else { "tasks run" })
    }
}

impl Place<'_> {
    /// How the place is filled at `now`.
    pub(super) fn condition(
        &self,
        now: Timestamp,
        snapshot: &ClusterSnapshot,
        service: &Service,
    ) -> Condition {
        if self.runs(snapshot) {
            return Condition::Runs;
        }
        if !self.is_wanted {
            return Condition::Idle;
        }
        if slots::filling(now, snapshot, service, &self.tasks) == Filling::Ended {
            let failed = self.tasks.first().is_some_and(|task| has_failed(snapshot, task));
            return if failed { Condition::Lacks } else { Condition::Idle };
        }
        let since = self.since(snapshot).unwrap_or(service.updated_at);
        let says_why =
            self.tasks.iter().any(|task| slots::is_wanted(task) && !snapshot.error_of(task).is_empty());
        if says_why || now - since > STARTING || self.crashes(now, snapshot) >= CRASHES {
            Condition::Lacks
        } else {
            Condition::Starts
        }
    }

    /// Whether a task runs on a node that is not down.
    pub(super) fn runs(&self, snapshot: &ClusterSnapshot) -> bool {
        self.tasks.iter().any(|task| {
            snapshot.state_of(task) == TaskState::Running
                && task.node_id.as_ref().is_some_and(|node| !snapshot.is_lost(node))
        })
    }

    /// Since when no task runs, as far as the history goes: the end of the last one that ran, or
    /// the moment when its node went down; the creation of the oldest if none ran.
    pub(super) fn since(&self, snapshot: &ClusterSnapshot) -> Option<Timestamp> {
        let ran = self.tasks.iter().find(|task| snapshot.status_of(task).running_at.is_some());
        let Some(task) = ran else { return self.tasks.iter().map(|task| task.created_at).min() };
        let gone = task.node_id.as_ref().filter(|node| snapshot.is_lost(node));
        let liveness = gone.and_then(|node| snapshot.liveness.get(node));
        let is_over = snapshot.state_of(task).is_terminal();
        match liveness {
            Some(liveness) if !is_over => Some(liveness.since),
            _ => Some(snapshot.ended_at(task)),
        }
    }

    /// How many of the place's tasks failed lately.
    pub(super) fn crashes(&self, now: Timestamp, snapshot: &ClusterSnapshot) -> usize {
        let is_late = |task: &Stored<Task>| now - snapshot.ended_at(task) < CRASHES_WITHIN;
        self.tasks.iter().filter(|task| has_failed(snapshot, task) && is_late(task)).count()
    }
}

fn has_failed(snapshot: &ClusterSnapshot, task: &Task) -> bool {
    matches!(snapshot.state_of(task), TaskState::Failed | TaskState::Rejected)
}

#[cfg(test)]
mod tests {
    use mesh_state::node::NodeState;
    use mesh_state::spec::{RestartCondition, RestartPolicy};
    use mesh_state::task::TaskStatus;

    use super::*;
    use crate::fixtures::{World, global, node, service, task};

    fn conditions(world: &World, service: &str) -> Vec<Condition> {
        let service = &world.snapshot.services[&service.into()];
        let places = of(&world.snapshot, service);
        places.iter().map(|place| place.condition(world.now, &world.snapshot, service)).collect()
    }

    /// Puts a task of `web` on `n1` and reports the state.
    fn put(world: &mut World, id: &str, slot: u64, state: TaskState) -> Task {
        let mut value = task(id, "web", slot);
        value.node_id = Some("n1".into());
        value.created_at = world.now;
        world.put_task(&value);
        let running_at = (state == TaskState::Running).then_some(world.now);
        let timestamp = world.now;
        world.report_status(&value.id, TaskStatus { state, timestamp, running_at, ..TaskStatus::default() });
        value
    }

    #[test]
    fn a_replica_without_a_task_is_a_place_that_lacks_one_after_a_while() {
        let mut world = World::with_nodes(["n1"]);
        world.put_service(&mesh_state::service::Service { updated_at: world.now, ..service("web", 2) });
        put(&mut world, "t2", 2, TaskState::Running);
        assert_eq!(conditions(&world, "web"), [Condition::Starts, Condition::Runs]);
        world.pass(31);
        assert_eq!(conditions(&world, "web"), [Condition::Lacks, Condition::Runs]);
    }

    #[test]
    fn a_task_that_ran_long_and_just_ended_is_being_replaced() {
        let mut world = World::with_nodes(["n1"]);
        world.put_service(&service("web", 1));
        let mut first = put(&mut world, "t1", 1, TaskState::Running);
        world.pass(3600);
        first.desired_state = TaskState::Shutdown;
        world.put_task(&first);
        let status = TaskStatus { state: TaskState::Failed, timestamp: world.now, ..TaskStatus::default() };
        world.report_status(&first.id, status);
        let second = put(&mut world, "t2", 1, TaskState::Starting);
        assert_eq!(second.id, "t2".into());
        assert_eq!(conditions(&world, "web"), [Condition::Starts]);
        world.pass(31);
        assert_eq!(conditions(&world, "web"), [Condition::Lacks]);
        let service = &world.snapshot.services[&"web".into()];
        let since = of(&world.snapshot, service)[0].since(&world.snapshot);
        assert_eq!(since, Some(world.now - TimeDelta::seconds(31)), "the end of the task that ran");
    }

    #[test]
    fn a_running_task_on_a_node_that_is_down_does_not_count() {
        let mut world = World::with_nodes(["n1"]);
        world.put_service(&service("web", 1));
        put(&mut world, "t1", 1, TaskState::Running);
        world.pass(3600);
        world.set_liveness(&"n1".into(), NodeState::Down);
        assert_eq!(conditions(&world, "web"), [Condition::Starts], "just now");
        world.pass(31);
        assert_eq!(conditions(&world, "web"), [Condition::Lacks]);
    }

    #[test]
    fn what_ended_by_its_policy_is_a_problem_only_if_it_failed() {
        for (state, expected) in
            [(TaskState::Complete, Condition::Idle), (TaskState::Failed, Condition::Lacks)]
        {
            let mut world = World::with_nodes(["n1"]);
            let mut value = service("web", 1);
            let never = RestartPolicy { condition: Some(RestartCondition::None), ..RestartPolicy::default() };
            value.spec.task_template.restart_policy = Some(never);
            world.put_service(&value);
            let mut ended = put(&mut world, "t1", 1, TaskState::Running);
            ended.desired_state = TaskState::Shutdown;
            world.put_task(&ended);
            world.report(&ended.id, state);
            world.pass(3600);
            assert_eq!(conditions(&world, "web"), [expected], "after {state:?}");
        }
    }

    #[test]
    fn a_global_service_wants_nothing_of_nodes_that_may_not_run_it() {
        let mut world = World::with_nodes(["n1"]);
        let mut drained = node("n2");
        drained.spec.availability = Availability::Drain;
        world.add_node(&drained);
        let value = global("web");
        world.put_service(&value);
        let mut old = task("t1", "web", 1);
        old.slot = Slot::Node("n2".into());
        old.node_id = Some("n2".into());
        old.desired_state = TaskState::Shutdown;
        world.put_task(&old);
        world.report(&old.id, TaskState::Shutdown);
        world.pass(3600);
        let places: Vec<(Slot, Condition)> = of(&world.snapshot, &value)
            .iter()
            .map(|place| (place.slot.clone(), place.condition(world.now, &world.snapshot, &value)))
            .collect();
        let expected =
            [(Slot::Node("n1".into()), Condition::Lacks), (Slot::Node("n2".into()), Condition::Idle)];
        assert_eq!(places, expected);
    }
}
