//! Problems of services.

use mesh_state::Timestamp;
use mesh_state::service::{Service, UpdateState};

use super::places::{self, CRASHES, Condition, Place, Tally};
use super::refused;
use super::{Kind, Problem, Severity, counted};
use crate::feed::snapshot::ClusterSnapshot;
use crate::slots;

/// The services' problems.
pub(super) fn problems(now: Timestamp, snapshot: &ClusterSnapshot) -> Vec<Problem> {
    snapshot.services.values().flat_map(|service| of_service(now, snapshot, service)).collect()
}

fn of_service(now: Timestamp, snapshot: &ClusterSnapshot, service: &Service) -> Vec<Problem> {
    let name = &service.spec.name;
    let about = |severity, cause: String, since| Problem {
        severity,
        kind: Kind::Service,
        id: service.id.to_string(),
        name: name.clone(),
        cause,
        since,
        cure: format!("mesh why {name}"),
    };
    let mut found = Vec::new();
    found.extend(
        missing(now, snapshot, service).map(|(severity, cause, since)| about(severity, cause, since)),
    );
    found.extend(update(service).map(|(cause, since)| Problem {
        cure: format!("mesh why {name}; then docker service update, or docker service rollback {name}"),
        ..about(Severity::Warning, cause, since)
    }));
    found
}

/// How many places of all services have no running task, although they should.
pub(super) fn unfilled(now: Timestamp, snapshot: &ClusterSnapshot) -> usize {
    let of_service = |service: &Service| {
        let tally = Tally::of(now, snapshot, service, &places::of(snapshot, service));
        tally.wanted - tally.running
    };
    snapshot.services.values().map(|service| of_service(service)).sum()
}

/// What is wrong with places that should have a running task, and have none.
fn missing(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    service: &Service,
) -> Option<(Severity, String, Option<Timestamp>)> {
    let places = places::of(snapshot, service);
    let condition = |place: &&Place<'_>| place.condition(now, snapshot, service);
    let lacking: Vec<&Place<'_>> =
        places.iter().filter(|place| condition(place) == Condition::Lacks).collect();
    if lacking.is_empty() {
        return None;
    }
    let tally = Tally::of(now, snapshot, service, &places);
    let severity = if tally.running == 0 { Severity::Error } else { Severity::Warning };
    let since = lacking.iter().filter_map(|place| place.since(snapshot)).min();
    let mut causes: Vec<String> = lacking.iter().map(|place| cause(now, snapshot, service, place)).collect();
    causes.sort_unstable();
    causes.dedup();
    let more = if causes.len() > 1 {
        format!(" (and {})", counted(causes.len() - 1, "other reason"))
    } else {
        String::new()
    };
    Some((severity, format!("{}: {}{more}", tally.text(), causes[0]), since))
}

fn cause(now: Timestamp, snapshot: &ClusterSnapshot, service: &Service, place: &Place<'_>) -> String {
    let tasks = place.tasks.as_slice();
    let crashed = place.crashes(now, snapshot);
    let last_error = tasks.iter().map(|task| snapshot.error_of(task)).find(|error| !error.is_empty());
    if crashed >= CRASHES {
        let error = last_error.unwrap_or("without an error");
        return format!(
            "{} failed {crashed} times within 10 minutes, at last: {error}",
            service.task_name(&place.slot)
        );
    }
    let Some(task) = slots::most_useful(snapshot, tasks) else {
        return match last_error {
            Some(error) => format!("its restart policy wants no other task after: {error}"),
            None if snapshot.leader.is_none() => "no manager leads, so no task is made".to_owned(),
            None => "no task was made yet".to_owned(),
        };
    };
    let node = task.node_id.as_ref().and_then(|id| snapshot.nodes.get(id));
    if let Some(node) = node.filter(|node| snapshot.is_lost(&node.id)) {
        return format!("node {} is down", node.description.hostname);
    }
    if task.node_id.is_none() {
        let refused = refused::nodes(now, snapshot, task);
        let lines: Vec<String> = refused.iter().map(refused::Refused::line).collect();
        return match (lines.is_empty(), last_error) {
            (false, _) => format!("no node for it ({})", lines.join("; ")),
            (true, Some(error)) => error.to_owned(),
            (true, None) => "it waits for a node".to_owned(),
        };
    }
    let state = snapshot.state_of(task).as_str();
    last_error.map_or_else(|| format!("it is {state}"), |error| format!("it is {state}: {error}"))
}

/// An update that waits for a person, or went back.
fn update(service: &Service) -> Option<(String, Option<Timestamp>)> {
    let status = service.update_status.as_ref()?;
    let what = match status.state {
        UpdateState::Paused => "its update is paused",
        UpdateState::RollbackPaused => "its rollback is paused",
        UpdateState::RollbackCompleted => "its update was rolled back",
        UpdateState::Updating | UpdateState::Completed | UpdateState::RollbackStarted => return None,
    };
    Some((format!("{what}: {}", status.message), status.completed_at.or(Some(status.started_at))))
}

#[cfg(test)]
mod tests {
    use mesh_state::node::NodeState;
    use mesh_state::service::UpdateStatus;
    use mesh_state::task::{TaskState, TaskStatus};

    use super::super::problems;
    use super::*;
    use crate::fixtures::{World, service, task};
    use crate::planners::scheduler;

    fn seen(world: &World) -> Vec<(Severity, String, String)> {
        let found = problems(world.now, &world.snapshot, true);
        let of_objects = found.into_iter().filter(|problem| problem.kind != Kind::Cluster);
        of_objects.map(|problem| (problem.severity, problem.name, problem.cause)).collect()
    }

    #[test]
    fn a_cluster_in_which_everything_runs_has_no_problem() {
        let mut world = World::with_nodes(["n1"]);
        world.put_service(&service("web", 1));
        let mut running = task("t1", "web", 1);
        running.node_id = Some("n1".into());
        world.put_task(&running);
        world.report(&running.id, TaskState::Running);
        world.pass(3600);
        assert_eq!(seen(&world), []);
    }

    #[test]
    fn what_finds_no_node_is_told_at_once() {
        let mut world = World::with_nodes(["n1"]);
        let mut value = service("web", 1);
        value.spec.task_template.placement.get_or_insert_default().constraints =
            vec!["node.labels.zone==a".to_owned()];
        world.put_service(&value);
        world.put_task(&task("t1", "web", 1));
        world.run(scheduler::plan);
        let cause = "0 of 1 task runs: no node for it (1 node: constraint node.labels.zone==a is not met)";
        assert_eq!(seen(&world), [(Severity::Error, "web".to_owned(), cause.to_owned())]);
    }

    #[test]
    fn a_crash_loop_is_told_with_its_last_error_and_a_task_that_starts_is_not() {
        let mut world = World::with_nodes(["n1"]);
        world.put_service(&service("web", 1));
        let fail = |world: &mut World, id: &str| {
            let mut failed = task(id, "web", 1);
            failed.node_id = Some("n1".into());
            failed.created_at = world.now;
            failed.desired_state = TaskState::Shutdown;
            world.put_task(&failed);
            let err = "task: non-zero exit (1)".to_owned();
            let timestamp = world.now;
            let status = TaskStatus { state: TaskState::Failed, err, timestamp, ..TaskStatus::default() };
            world.report_status(&failed.id, status);
        };
        fail(&mut world, "t1");
        assert_eq!(seen(&world), [], "one failure, just now");
        fail(&mut world, "t2");
        fail(&mut world, "t3");
        let cause =
            "0 of 1 task runs: web.1 failed 3 times within 10 minutes, at last: task: non-zero exit (1)";
        assert_eq!(seen(&world), [(Severity::Error, "web".to_owned(), cause.to_owned())]);
    }

    #[test]
    fn a_node_that_is_down_and_an_update_that_is_paused_are_told() {
        let mut world = World::with_nodes(["n1"]);
        let status = UpdateStatus {
            state: UpdateState::Paused,
            message: "update paused due to failure".to_owned(),
            ..UpdateStatus::begun(world.now)
        };
        world.put_service(&Service { update_status: Some(status), ..service("web", 0) });
        world.set_liveness(&"n1".into(), NodeState::Down);
        assert_eq!(
            seen(&world),
            [
                (Severity::Error, "host-n1".to_owned(), "is down".to_owned()),
                (
                    Severity::Warning,
                    "web".to_owned(),
                    "its update is paused: update paused due to failure".to_owned()
                ),
            ]
        );
    }
}
