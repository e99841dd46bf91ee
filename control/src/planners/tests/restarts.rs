//! Tests of what follows, and when, after tasks end, are lost or move.

use chrono::TimeDelta;
use mesh_state::node::{Availability, NodeState};
use mesh_state::spec::{RestartCondition, RestartPolicy};
use mesh_state::task::{Task, TaskState};

use crate::fixtures::{World, service, task};
use crate::plan::Plan;
use crate::planners::promote;
use crate::planners::reaper;
use crate::planners::replicated;
use crate::planners::restart;

const SECOND: u64 = 1_000_000_000;

/// One task `t` of `web` that runs on node `a`; node `b` is free.
fn running(policy: RestartPolicy) -> World {
    let mut world = World::with_nodes(["a", "b"]);
    let mut web = service("web", 1);
    web.spec.task_template.restart_policy = Some(policy);
    world.put_service(&web);
    let mut first = task("t", "web", 1);
    first.node_id = Some("a".into());
    world.put_task(&first);
    world.report(&first.id, TaskState::Running);
    world
}

fn only_wanted(world: &World) -> Task {
    let mut wanted = world.wanted("web");
    assert_eq!(wanted.len(), 1, "wanted tasks: {wanted:#?}");
    wanted.remove(0)
}

#[test]
fn a_failed_task_is_replaced_after_the_delay() {
    let mut world = running(RestartPolicy::default());
    world.report(&"t".into(), TaskState::Failed);
    let failed_at = world.now;
    world.pass(1);
    world.run(restart::plan);
    let next = only_wanted(&world);
    let five = TimeDelta::seconds(5);
    assert_eq!((next.desired_state, next.start_after), (TaskState::Ready, Some(failed_at + five)));
    assert_eq!(world.snapshot.tasks[&"t".into()].desired_state, TaskState::Shutdown);
    assert_eq!(world.run(restart::plan), Plan::default(), "planned on its own result");
    assert_eq!(world.run(replicated::plan), Plan::default(), "the slot was filled twice");

    assert_eq!(world.run(promote::plan).wake_at, Some(failed_at + five));
    assert_eq!(only_wanted(&world).desired_state, TaskState::Ready, "promoted before the delay was over");
    world.pass(4);
    world.run(promote::plan);
    assert_eq!(only_wanted(&world).desired_state, TaskState::Running);
}

#[test]
fn a_replacement_that_ends_during_its_delay_is_replaced_after_a_delay() {
    let mut world = running(RestartPolicy::default());
    world.report(&"t".into(), TaskState::Rejected);
    let began = world.now;
    let mut made = 0;
    for _ in 0..60 {
        for plan in [restart::plan, replicated::plan, promote::plan] {
            world.run(plan);
        }
        let current = only_wanted(&world);
        if world.snapshot.state_of(&current) != TaskState::Rejected {
            made += 1;
            world.report(&current.id, TaskState::Rejected);
        }
        world.pass(1);
    }
    assert_eq!(world.now - began, TimeDelta::seconds(60));
    assert_eq!(made, 12, "tasks in a minute, with a delay of five seconds");

    let waits = only_wanted(&world);
    let node = waits.node_id.clone().unwrap_or("a".into());
    world.update_node(node.as_str(), |node| node.spec.availability = Availability::Drain);
    world.run(restart::plan);
    assert_ne!(only_wanted(&world).id, waits.id, "a task on a drained node waits for no delay");
}

#[test]
fn a_clock_that_runs_ahead_does_not_stretch_the_delay() {
    let mut world = running(RestartPolicy::default());
    world.pass(3600);
    world.report(&"t".into(), TaskState::Failed);
    world.pass(-3600);
    world.run(restart::plan);
    assert_eq!(only_wanted(&world).start_after, Some(world.now + TimeDelta::seconds(5)));
}

#[test]
fn a_vacant_slot_is_filled_under_the_same_delay() {
    // As if only the stop of the plan had been committed, not the replacement.
    let mut world = running(RestartPolicy::default());
    world.report(&"t".into(), TaskState::Failed);
    let mut stopped = world.snapshot.tasks[&"t".into()].value.clone();
    stopped.desired_state = TaskState::Shutdown;
    world.put_task(&stopped);
    world.run(replicated::plan);
    let next = only_wanted(&world);
    assert_eq!(
        (next.desired_state, next.start_after),
        (TaskState::Ready, Some(world.now + TimeDelta::seconds(5)))
    );
}

#[test]
fn the_restart_condition_decides_which_ends_are_replaced() {
    let table = [
        (RestartCondition::Any, TaskState::Complete, true),
        (RestartCondition::Any, TaskState::Rejected, true),
        (RestartCondition::OnFailure, TaskState::Complete, false),
        (RestartCondition::OnFailure, TaskState::Failed, true),
        (RestartCondition::None, TaskState::Failed, false),
    ];
    for (condition, end, restarts) in table {
        let mut world = running(RestartPolicy { condition: Some(condition), ..RestartPolicy::default() });
        world.report(&"t".into(), end);
        world.run(restart::plan);
        assert_eq!(world.wanted("web").len(), usize::from(restarts), "{condition:?} after {end:?}");
        assert_eq!(world.run(replicated::plan), Plan::default(), "the orchestrator judges otherwise");
    }
}

/// Fails the wanted task of the slot again and again; returns how many tasks there were in all.
fn fail_until_left_alone(world: &mut World, seconds_apart: i64) -> usize {
    for tasks in 1..30 {
        let Some(current) = world.wanted("web").pop() else { return tasks - 1 };
        world.pass(seconds_apart);
        world.report(&current.id, TaskState::Failed);
        world.run(restart::plan);
        world.run(replicated::plan);
        world.run(reaper::plan);
    }
    30
}

#[test]
fn attempts_are_counted_in_the_store() {
    let policy =
        |window| RestartPolicy { max_attempts: Some(3), window, delay: Some(0), ..RestartPolicy::default() };
    assert_eq!(fail_until_left_alone(&mut running(policy(None)), 1), 4, "the first task and three restarts");
    assert_eq!(
        fail_until_left_alone(&mut running(policy(Some(100 * SECOND))), 1),
        4,
        "all within the window"
    );
    assert_eq!(
        fail_until_left_alone(&mut running(policy(Some(10 * SECOND))), 60),
        30,
        "each failure in a window of its own"
    );
    let many = RestartPolicy { max_attempts: Some(12), delay: Some(0), ..RestartPolicy::default() };
    assert_eq!(fail_until_left_alone(&mut running(many), 1), 13, "more attempts than the history limit");
}

#[test]
fn a_lost_or_drained_node_brings_no_delay() {
    let mut world = running(RestartPolicy::default());
    world.set_liveness(&"a".into(), NodeState::Down);
    world.run(restart::plan);
    let next = only_wanted(&world);
    assert_eq!((next.desired_state, next.start_after), (TaskState::Running, None), "the node is down");

    let mut world = running(RestartPolicy::default());
    world.update_node("a", |node| node.spec.availability = Availability::Drain);
    world.run(restart::plan);
    let next = only_wanted(&world);
    assert_eq!((next.desired_state, next.start_after), (TaskState::Ready, None), "the old task still stops");
    world.run(promote::plan);
    assert_eq!(only_wanted(&world).desired_state, TaskState::Ready);
    world.report(&"t".into(), TaskState::Shutdown);
    world.run(promote::plan);
    assert_eq!(only_wanted(&world).desired_state, TaskState::Running);

    let mut world = running(RestartPolicy::default());
    world.set_liveness(&"a".into(), NodeState::Silent);
    assert_eq!(world.run(restart::plan), Plan::default(), "a silent node keeps its tasks");
    world.set_liveness(&"a".into(), NodeState::Ready);
    world.update_node("a", |node| node.spec.availability = Availability::Pause);
    assert_eq!(world.run(restart::plan), Plan::default(), "a paused node keeps its tasks");
}

#[test]
fn a_task_that_does_not_stop_is_waited_for_until_it_has_or_its_node_is_lost() {
    let mut world = running(RestartPolicy::default());
    world.update_service("web", |spec| {
        let container = spec.task_template.container_spec.get_or_insert_default();
        container.stop_grace_period = Some(7_200_000_000_000);
    });
    world.update_node("a", |node| node.spec.availability = Availability::Drain);
    world.run(restart::plan);
    for _ in 0..4 {
        world.pass(3600);
        let plan = world.run(promote::plan);
        assert_eq!(plan.wake_at, None, "the end of a task wakes the driver, not the clock");
        assert_eq!(only_wanted(&world).desired_state, TaskState::Ready, "old and new would run together");
    }
    let mut lost = world.clone();
    lost.set_liveness(&"a".into(), NodeState::Down);
    lost.run(promote::plan);
    assert_eq!(
        only_wanted(&lost).desired_state,
        TaskState::Running,
        "a task on a lost node isn't waited for"
    );
    world.report(&"t".into(), TaskState::Shutdown);
    world.run(promote::plan);
    assert_eq!(only_wanted(&world).desired_state, TaskState::Running);
}

#[test]
fn both_a_delay_and_an_older_task_are_waited_for() {
    let mut world = running(RestartPolicy::default());
    let mut next = task("next", "web", 1);
    next.desired_state = TaskState::Ready;
    next.created_at = world.now;
    next.start_after = Some(world.now + TimeDelta::seconds(5));
    world.put_task(&next);
    let mut old = world.snapshot.tasks[&"t".into()].value.clone();
    old.desired_state = TaskState::Shutdown;
    world.put_task(&old);
    world.pass(6);
    assert_eq!(world.run(promote::plan).wake_at, None, "the delay is over, the old task is not");
    assert_eq!(world.snapshot.tasks[&"next".into()].desired_state, TaskState::Ready);
    world.report(&"t".into(), TaskState::Failed);
    world.run(promote::plan);
    assert_eq!(world.snapshot.tasks[&"next".into()].desired_state, TaskState::Running);
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut world = running(RestartPolicy { delay: Some(0), ..RestartPolicy::default() });
    assert_eq!(fail_until_left_alone(&mut world, 1), 30);
    let ended =
        world.snapshot.tasks.values().filter(|task| task.desired_state == TaskState::Shutdown).count();
    assert_eq!(
        (world.snapshot.tasks.len(), ended),
        (6, 5),
        "expected five ended tasks beside the wanted one"
    );
    assert!(world.snapshot.statuses.len() <= 6, "statuses of deleted tasks are left");
}
