//! The story of each slot of a service.

use mesh_state::Timestamp;
use mesh_state::service::Service;
use mesh_state::task::{Slot, Task, TaskState, TaskStatus};
use serde::Serialize;

use super::nodes;
use super::places::{self, Place, Tally};
use super::refused::{self, Refused};
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::slots::{self, Filling};

/// Earlier tasks of a slot that are told.
const EARLIER_MAX: usize = 5;

/// Why a service has the tasks that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Why {
    /// The service's id.
    #[serde(rename = "ID")]
    pub id: String,
    /// The service's name.
    pub name: String,
    /// All of it in one line: `2 of 3 tasks run`.
    pub verdict: String,
    /// How an update goes, if there is one: `paused: …`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub update: String,
    /// Its slots, in order, those that have no task yet too. Of a global service: the nodes that
    /// may run its task.
    pub slots: Vec<SlotStory>,
    /// The nodes that may not run a global service's task, and so have no slot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Refused>,
}

/// What is in a slot, and what was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SlotStory {
    /// `web.3`, or `web.NODE` for a global service.
    pub name: String,
    /// The id of the task that counts: the wanted one, else the newest; empty if none was made yet.
    #[serde(rename = "TaskID")]
    pub task_id: String,
    /// Its observed state, in Docker's spelling.
    pub state: &'static str,
    /// The state that it is to have.
    pub desired_state: &'static str,
    /// The name of its node; empty until it has one.
    pub node: String,
    /// Since when it has its state; of a task on a node that is down, since when the node is.
    pub since: Timestamp,
    /// Its container's exit code, if the container ran and ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Why it failed or waits; empty if neither.
    pub error: String,
    /// What happens next, if nothing runs: `starts at …`, `its restart policy wants no other task`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next: String,
    /// The nodes that can't take it, if it waits for one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// Earlier tasks of the slot, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Ended>,
}

/// An earlier task of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ended {
    /// The id of the task that ended.
    #[serde(rename = "TaskID")]
    pub task_id: String,
    /// Its last state.
    pub state: &'static str,
    /// When it came into that state.
    pub at: Timestamp,
    /// The name of its node.
    pub node: String,
    /// Its container's exit code, if the container ran and ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Why it ended; empty if it was asked to.
    pub error: String,
}

/// The stories of a service's slots at `now`.
pub fn why(now: Timestamp, snapshot: &ClusterSnapshot, service: &Service) -> Why {
    let places = places::of(snapshot, service);
    let is_global = slots::is_global(&service.spec);
    // The slot of a node that may not run the task any more has only a history.
    let told = places.iter().filter(|place| !is_global || place.is_wanted || place.runs(snapshot));
    Why {
        id: service.id.to_string(),
        name: service.spec.name.clone(),
        verdict: verdict(service, &places, Tally::of(now, snapshot, service, &places), snapshot),
        update: update(service),
        slots: told.map(|place| story(now, snapshot, service, place)).collect(),
        left_out: if is_global { refused::left_out(snapshot, service) } else { Vec::new() },
    }
}

fn verdict(service: &Service, places: &[Place<'_>], tally: Tally, snapshot: &ClusterSnapshot) -> String {
    if service.job.is_none() {
        return tally.text();
    }
    let running = places.iter().filter(|place| place.runs(snapshot)).count();
    format!(
        "a job, of which {} now",
        if running == 1 { "1 task runs".to_owned() } else { format!("{running} tasks run") }
    )
}

fn update(service: &Service) -> String {
    service.update_status.as_ref().map_or_else(String::new, |status| {
        if status.message.is_empty() {
            status.state.as_str().to_owned()
        } else {
            format!("{}: {}", status.state.as_str(), status.message)
        }
    })
}

fn story(now: Timestamp, snapshot: &ClusterSnapshot, service: &Service, place: &Place<'_>) -> SlotStory {
    let tasks = place.tasks.as_slice();
    let shown = slots::most_useful(snapshot, tasks).or(tasks.first().copied());
    let mut told = SlotStory {
        name: name_of(snapshot, service, &place.slot),
        task_id: String::new(),
        state: TaskState::New.as_str(),
        desired_state: TaskState::Running.as_str(),
        node: String::new(),
        since: service.updated_at,
        exit_code: None,
        error: String::new(),
        next: next(now, snapshot, service, tasks),
        refused: Vec::new(),
        earlier: tasks
            .iter()
            .filter(|task| shown.is_none_or(|shown| shown.id != task.id))
            .take(EARLIER_MAX)
            .map(|task| ended(snapshot, task))
            .collect(),
    };
    let Some(task) = shown else { return told };
    let status = snapshot.status_of(task);
    told.task_id = task.id.to_string();
    told.state = status.state.as_str();
    told.desired_state = task.desired_state.as_str();
    told.node = node_of(snapshot, task);
    told.since = status.timestamp;
    told.exit_code = exit_code(status);
    snapshot.error_of(task).clone_into(&mut told.error);
    if let Some(node) = task.node_id.as_ref().and_then(|id| snapshot.nodes.get(id))
        && snapshot.is_lost(&node.id)
    {
        told.error = format!("its node {} is down", node.description.hostname);
        told.since = nodes::since(snapshot, node).unwrap_or(told.since);
    }
    if task.node_id.is_none() && slots::is_wanted(task) {
        told.refused = refused::nodes(now, snapshot, task);
    }
    told
}

/// `web.3`; of a global service with the node's name instead of its id.
fn name_of(snapshot: &ClusterSnapshot, service: &Service, slot: &Slot) -> String {
    let node = match slot {
        Slot::Node(id) => snapshot.nodes.get(id).map(|node| node.description.hostname.as_str()),
        Slot::Number(_) => None,
    };
    node.map_or_else(|| service.task_name(slot), |node| format!("{}.{node}", service.spec.name))
}

fn node_of(snapshot: &ClusterSnapshot, task: &Task) -> String {
    let node = task.node_id.as_ref().and_then(|id| snapshot.nodes.get(id));
    node.map_or_else(String::new, |node| node.description.hostname.clone())
}

/// What happens next in a slot in which no task is wanted, or whose task waits for its turn.
fn next(now: Timestamp, snapshot: &ClusterSnapshot, service: &Service, tasks: &[&Stored<Task>]) -> String {
    if let Some(at) = tasks.iter().find(|task| slots::is_wanted(task)).and_then(|task| task.start_after)
        && at > now
    {
        return format!("starts at {}", at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    }
    match slots::filling(now, snapshot, service, tasks) {
        Filling::Vacant(_) if snapshot.leader.is_none() => "no manager leads, so no task is made".to_owned(),
        Filling::Ended => "its restart policy wants no other task".to_owned(),
        Filling::Vacant(_) => "a new task is about to be made".to_owned(),
        Filling::Wanted => String::new(),
    }
}

fn ended(snapshot: &ClusterSnapshot, task: &Stored<Task>) -> Ended {
    let status = snapshot.status_of(task);
    Ended {
        task_id: task.id.to_string(),
        state: status.state.as_str(),
        at: status.timestamp,
        node: node_of(snapshot, task),
        exit_code: exit_code(status),
        error: snapshot.error_of(task).to_owned(),
    }
}

/// The exit code of a task's container, once the task has ended.
fn exit_code(status: &TaskStatus) -> Option<i64> {
    let container = status.container.as_ref().filter(|_| status.state.is_terminal());
    container.map(|container| container.exit_code)
}

#[cfg(test)]
mod tests {
    use mesh_state::node::{Availability, NodeState};
    use mesh_state::task::ContainerStatus;

    use super::*;
    use crate::fixtures::{World, global, node, service, task};
    use crate::planners::scheduler;

    #[test]
    fn a_task_that_finds_no_node_tells_every_reason_with_its_nodes() {
        let mut world = World::with_nodes(["n1", "n2"]);
        let mut drained = node("n3");
        drained.spec.availability = Availability::Drain;
        world.add_node(&drained);
        let mut value = service("web", 1);
        value.spec.task_template.placement.get_or_insert_default().constraints =
            vec!["node.role!=manager".to_owned(), "node.labels.zone==a".to_owned()];
        world.put_service(&value);
        world.put_task(&task("t1", "web", 1));
        world.run(scheduler::plan);
        let told = why(world.now, &world.snapshot, &value);
        assert_eq!(told.verdict, "0 of 1 task runs");
        let story = &told.slots[0];
        assert_eq!((story.name.as_str(), story.state), ("web.1", "pending"));
        let lines: Vec<String> = story.refused.iter().map(Refused::line).collect();
        assert_eq!(
            lines,
            ["2 nodes: constraint node.labels.zone==a is not met", "1 node: availability is drain"]
        );
        assert_eq!(story.refused[0].nodes, ["host-n1", "host-n2"]);
    }

    #[test]
    fn a_slots_earlier_tasks_are_told_with_their_exit_codes() {
        let mut world = World::with_nodes(["n1"]);
        let value = service("web", 1);
        world.put_service(&value);
        for (id, exit_code) in [("t1", 1), ("t2", 137)] {
            let mut failed = task(id, "web", 1);
            failed.node_id = Some("n1".into());
            failed.desired_state = TaskState::Shutdown;
            world.put_task(&failed);
            let container = ContainerStatus { exit_code, ..ContainerStatus::default() };
            let err = format!("task: non-zero exit ({exit_code})");
            let status = TaskStatus {
                state: TaskState::Failed,
                err,
                container: Some(container),
                ..TaskStatus::default()
            };
            world.report_status(&failed.id, status);
        }
        let mut running = task("t3", "web", 1);
        running.node_id = Some("n1".into());
        world.put_task(&running);
        world.report(&running.id, TaskState::Running);
        let told = why(world.now, &world.snapshot, &value);
        assert_eq!(told.verdict, "1 of 1 task runs");
        let codes: Vec<_> =
            told.slots[0].earlier.iter().map(|ended| (ended.exit_code, ended.error.as_str())).collect();
        assert_eq!(
            codes,
            [(Some(137), "task: non-zero exit (137)"), (Some(1), "task: non-zero exit (1)")],
            "newest first"
        );
    }

    #[test]
    fn a_task_on_a_node_that_is_down_says_so() {
        let mut world = World::with_nodes(["n1"]);
        let value = service("web", 1);
        world.put_service(&value);
        let mut running = task("t1", "web", 1);
        running.node_id = Some("n1".into());
        world.put_task(&running);
        world.report(&running.id, TaskState::Running);
        world.set_liveness(&"n1".into(), NodeState::Down);
        let told = why(world.now, &world.snapshot, &value);
        assert_eq!(told.slots[0].error, "its node host-n1 is down");
        assert_eq!(told.verdict, "0 of 1 task runs");
    }

    #[test]
    fn a_replica_without_a_task_and_the_nodes_of_a_global_service_are_told() {
        let mut world = World::with_nodes(["n1"]);
        let mut drained = node("n2");
        drained.spec.availability = Availability::Drain;
        world.add_node(&drained);
        let value = service("web", 1);
        world.put_service(&value);
        let told = why(world.now, &world.snapshot, &value);
        let slot = &told.slots[0];
        assert_eq!((slot.name.as_str(), slot.state, slot.task_id.as_str()), ("web.1", "new", ""));
        assert_eq!(slot.next, "no manager leads, so no task is made");

        let everywhere = global("each");
        world.put_service(&everywhere);
        let told = why(world.now, &world.snapshot, &everywhere);
        let names: Vec<&str> = told.slots.iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!(names, ["each.host-n1"]);
        let lines: Vec<String> = told.left_out.iter().map(Refused::line).collect();
        assert_eq!(lines, ["1 node: availability is drain"]);
    }
}
