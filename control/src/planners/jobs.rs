//! Jobs: services whose tasks run to completion, once for each execution of the job.
//!
//! It decides from the tasks of the present execution alone. Each task carries the number of its
//! execution, and a slot's state is read from its tasks: completed, filled, given up (its tasks
//! failed as often as the restart policy allows), or vacant. A replicated job fills the lowest free
//! slots, no more at a time than the spec allows and no more in all than are missing. A global job
//! fills one slot for each node.
//!
//! A global job runs on the nodes that were members when it was executed. Otherwise it would never
//! be complete: each node that joins later would begin it again. The store's order says which nodes
//! were there (the create revisions of the node and of the spec version), as clocks of managers may
//! differ.
//!
//! It can't see work, only exits. A task that exits with 0 has completed, and a task whose node is
//! lost is run again, although it may have done all its work. So a job's work should be safe to
//! repeat; the same holds in Swarm.
//!
//! Invariants: a slot of an execution completes once and is never filled again; no more slots than
//! the spec allows are filled at a time; a task of an earlier execution is no part of the present
//! one. A slot that is given up does not end the job: the other slots go on.
//!
//! Left to others: replacing a task that failed or whose node is lost (`restart`), where a task
//! runs (`scheduler`).

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use mesh_state::service::Service;
use mesh_state::task::{Slot, TaskState};
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::Plan;
use crate::slots::create::{Start, TaskMaker, stopped};
use crate::slots::eligible::{Suits, takes_new};
use crate::slots::outdated::is_current;
use crate::slots::{self, Filling, SlotTasks};

/// Fills the slots of all jobs, and stops the tasks of their earlier executions.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut maker = TaskMaker::new(now, snapshot, ids);
    for service in snapshot.services.values() {
        let mode = &service.spec.mode;
        if !mode.is_job() {
            continue;
        }
        end_earlier_executions(now, snapshot, &service.value, &mut plan);
        let slots = Slots::of(now, snapshot, &service.value);
        let vacant = match mode.replicated_job.as_ref() {
            Some(job) => slots.to_fill(job.total_completions(), job.max_concurrent()),
            None => slots.to_fill_on(eligible_nodes(snapshot, &service.value)),
        };
        for (slot, start) in vacant {
            plan.reasons.push(format!("job {} fills slot {slot}", service.spec.name));
            if !maker.create(&mut plan, &service.value, &slot, start) {
                break;
            }
        }
    }
    maker.finish(&mut plan);
    plan
}

/// Stops tasks of earlier executions; those that have ended become history.
fn end_earlier_executions(now: Timestamp, snapshot: &ClusterSnapshot, service: &Service, plan: &mut Plan) {
    for task in snapshot.tasks_of(&service.id) {
        if slots::is_wanted(task) && !is_current(service, task) {
            plan.reasons.push(format!("task {} is of an earlier execution of its job", task.id));
            plan.actions.push(stopped(now, task, TaskState::Shutdown));
        }
    }
}

/// The nodes that a global job runs on: those that were members when it was executed.
fn eligible_nodes<'a>(
    snapshot: &'a ClusterSnapshot,
    service: &'a Service,
) -> impl Iterator<Item = NodeId> + use<'a> {
    let suits = Suits::new(&service.spec.task_template);
    // Each execution writes a version of the spec. The store's order tells which nodes were members
    // then; clocks of managers don't.
    let version = snapshot.specs.get(&(service.id.clone(), service.spec_version));
    let executed_at = version.map_or(i64::MAX, |spec| spec.create_revision);
    let nodes = snapshot
        .nodes
        .values()
        .filter(move |node| node.create_revision < executed_at && takes_new(snapshot, node, &suits));
    nodes.map(|node| node.id.clone())
}

/// The slots of a job's present execution.
struct Slots {
    filled: u64,
    completed: u64,
    /// Slots that are completed, given up or filled.
    taken: BTreeMap<Slot, Taken>,
    /// Vacant slots, and how a task may start there.
    vacant: BTreeMap<Slot, Start>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    AtWork,
    Completed,
    GivenUp,
}

impl Slots {
    fn of(now: Timestamp, snapshot: &ClusterSnapshot, service: &Service) -> Self {
        let mut slots = Self { filled: 0, completed: 0, taken: BTreeMap::new(), vacant: BTreeMap::new() };
        for (slot, tasks) in slots::of(snapshot, &service.id) {
            let current: SlotTasks<'_> =
                tasks.iter().copied().filter(|task| is_current(service, task)).collect();
            if current.is_empty() {
                // A task of an earlier execution may still be stopping there.
                slots.vacant.insert(slot.clone(), slots::start(now, snapshot, &tasks, None));
                continue;
            }
            let is_complete = current.iter().any(|task| snapshot.state_of(task) == TaskState::Complete);
            let taken = match slots::filling(now, snapshot, service, &current) {
                _ if is_complete => Taken::Completed,
                Filling::Wanted => Taken::AtWork,
                Filling::Ended => Taken::GivenUp,
                Filling::Vacant(start) => {
                    slots.vacant.insert(slot.clone(), start);
                    continue;
                }
            };
            slots.filled += u64::from(taken == Taken::AtWork);
            slots.completed += u64::from(taken == Taken::Completed);
            slots.taken.insert(slot.clone(), taken);
        }
        slots
    }

    /// The slots of a replicated job that get a task now, the lowest first. They count from 0, as
    /// clients that wait for a job expect.
    fn to_fill(&self, total: u64, at_once: u64) -> Vec<(Slot, Start)> {
        let room = at_once.saturating_sub(self.filled);
        let given_up = self.taken.values().filter(|taken| **taken == Taken::GivenUp).count() as u64;
        let missing = total.saturating_sub(self.completed + self.filled + given_up);
        let count = usize::try_from(room.min(missing)).unwrap_or(usize::MAX);
        let free = (0..total).map(Slot::Number).filter(|slot| !self.taken.contains_key(slot));
        free.take(count).map(|slot| self.start(slot)).collect()
    }

    /// The slots of a global job that get a task now.
    fn to_fill_on(&self, nodes: impl Iterator<Item = NodeId>) -> Vec<(Slot, Start)> {
        let free = nodes.map(Slot::Node).filter(|slot| !self.taken.contains_key(slot));
        free.map(|slot| self.start(slot)).collect()
    }

    fn start(&self, slot: Slot) -> (Slot, Start) {
        let start = self.vacant.get(&slot).copied().unwrap_or(Start::Now);
        (slot, start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{World, node, service};
    use mesh_state::service::JobStatus;
    use mesh_state::spec::{GlobalJobMode, ReplicatedJobMode, RestartCondition, ServiceMode};
    use mesh_state::task::Task;

    fn job(total: u64, at_once: u64) -> Service {
        let mode = ReplicatedJobMode { max_concurrent: Some(at_once), total_completions: Some(total) };
        let mut value = service("job", 1);
        value.spec.mode = ServiceMode { replicated_job: Some(mode), ..ServiceMode::default() };
        value.job = Some(JobStatus { iteration: 0, last_execution: Timestamp::default() });
        value
    }

    fn world(value: &Service) -> World {
        let mut world = World::with_nodes(["a", "b"]);
        world.put_service(value);
        world
    }

    /// The wanted tasks of the present execution, by slot.
    fn at_work(world: &World) -> Vec<Task> {
        let mut tasks = world.wanted("job");
        tasks.retain(|task| !world.snapshot.state_of(task).is_terminal());
        tasks.sort_by_key(|task| task.slot.clone());
        tasks
    }

    fn slots(world: &World) -> Vec<Slot> {
        at_work(world).into_iter().map(|task| task.slot).collect()
    }

    fn execute_again(world: &mut World) {
        let mut value = world.snapshot.services[&"job".into()].value.clone();
        value.spec.task_template.force_update += 1;
        value.spec_version += 1;
        value.job.as_mut().unwrap().iteration += 1;
        world.put_service(&value);
    }

    #[test]
    fn a_job_fills_as_many_slots_as_it_may_and_each_once() {
        let mut world = world(&job(3, 2));
        world.run(plan);
        assert_eq!(slots(&world), [Slot::Number(0), Slot::Number(1)]);
        assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
        world.report(&at_work(&world)[0].id, TaskState::Complete);
        world.run(plan);
        assert_eq!(slots(&world), [Slot::Number(1), Slot::Number(2)]);
        for task in at_work(&world) {
            world.report(&task.id, TaskState::Complete);
        }
        assert_eq!(world.run(plan), Plan::default(), "the job is complete");
        assert_eq!(
            world.run(crate::planners::restart::plan),
            Plan::default(),
            "completed tasks are not restarted"
        );
    }

    #[test]
    fn a_failed_task_is_replaced_in_its_slot_until_the_policy_gives_it_up() {
        let mut value = job(2, 1);
        let policy = value.spec.task_template.restart_policy.get_or_insert_default();
        (policy.max_attempts, policy.delay) = (Some(1), Some(0));
        let mut world = world(&value);
        world.run(plan);
        for attempt in 0..2 {
            let tried = at_work(&world);
            assert_eq!(slots(&world), [Slot::Number(0)], "attempt {attempt}");
            world.report(&tried[0].id, TaskState::Failed);
            world.run(crate::planners::restart::plan);
            assert_eq!(
                world.run(plan).actions.len(),
                attempt,
                "the restart policy has not given the slot up yet"
            );
        }
        assert_eq!(slots(&world), [Slot::Number(1)], "the next slot is filled");
    }

    #[test]
    fn another_execution_stops_the_earlier_one() {
        let mut world = world(&job(2, 2));
        world.run(plan);
        let first = at_work(&world);
        world.report(&first[0].id, TaskState::Complete);
        execute_again(&mut world);
        world.run(plan);
        let desired: Vec<_> = first.iter().map(|task| world.snapshot.tasks[&task.id].desired_state).collect();
        assert_eq!(desired, [TaskState::Shutdown, TaskState::Shutdown]);
        let second = at_work(&world);
        assert_eq!(slots(&world), [Slot::Number(0), Slot::Number(1)]);
        assert!(second.iter().all(|task| task.job_iteration == Some(1)), "{second:#?}");
        assert_eq!(world.run(crate::planners::updater::plan), Plan::default(), "a job is not rolled");
    }

    #[test]
    fn a_global_job_runs_on_the_nodes_that_were_members() {
        let mut value = job(1, 1);
        value.spec.mode = ServiceMode { global_job: Some(GlobalJobMode {}), ..ServiceMode::default() };
        let mut world = world(&value);
        // The clock of the manager that admitted it plays no part.
        let late = node("late");
        assert!(late.created_at <= world.now);
        world.add_node(&late);
        world.run(plan);
        assert_eq!(slots(&world), [Slot::Node("a".into()), Slot::Node("b".into())]);
        for task in at_work(&world) {
            world.report(&task.id, TaskState::Complete);
        }
        assert_eq!(world.run(plan), Plan::default());
    }

    proptest! {
        /// Whatever happens to its tasks, a job never has more of them at work than it may,
        /// completes no slot twice, and ends.
        #[test]
        fn a_job_ends(
            total in 0_u64..7,
            at_once in 1_u64..5,
            ends in prop::collection::vec((any::<usize>(), any::<bool>()), 40),
            restarts in prop::sample::select(vec![RestartCondition::Any, RestartCondition::OnFailure, RestartCondition::None]),
        ) {
            let mut value = job(total, at_once);
            let policy = value.spec.task_template.restart_policy.get_or_insert_default();
            (policy.condition, policy.delay) = (Some(restarts), Some(0));
            let mut world = world(&value);
            let step = |world: &mut World| {
                world.pass(1);
                world.run(crate::planners::restart::plan);
                world.run(plan);
                world.run(crate::planners::promote::plan);
                at_work(world)
            };
            let mut ends = ends.into_iter();
            loop {
                let running = step(&mut world);
                prop_assert!(running.len() as u64 <= at_once.min(total), "{} at work", running.len());
                if running.is_empty() {
                    break;
                }
                let (which, fails) = ends.next().unwrap_or_default();
                let task = &running[which % running.len()];
                world.report(&task.id, if fails { TaskState::Failed } else { TaskState::Complete });
            }
            let mut completed: Vec<Slot> = world
                .snapshot
                .tasks_of(&"job".into())
                .filter(|task| world.snapshot.state_of(task) == TaskState::Complete)
                .map(|task| task.slot.clone())
                .collect();
            completed.sort();
            let count = completed.len() as u64;
            completed.dedup();
            prop_assert_eq!(completed.len() as u64, count, "a slot was completed twice");
            if restarts != RestartCondition::None {
                prop_assert_eq!(count, total);
            }
        }
    }
}
