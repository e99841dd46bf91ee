//! What a node is to run, and what changed of it since it was last told.
//!
//! Invariants: pure; nothing is looked at again before it may have changed; a node is told of each
//! of its tasks once for each write of the task, and once its drain is announced; a task that was
//! observed at its end is never shown as one to run, so a node that lost its memory doesn't run it
//! again.
//!
//! Left to others: sending.

use std::collections::BTreeMap;

use mesh_state::cluster::Sealed;
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::proto;
use mesh_state::spec::{PortConfig, PublishMode, ServiceSpec};
use mesh_state::task::{Assignment, Drain, RegistryAuth, Task, TaskState};

use crate::docker_json::{meaning, shapes};
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::slots::drain;

/// What a node was told: its tasks, each with the revision of the task that it was told of, and how
/// it drains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SentAssignments {
    tasks: Option<BTreeMap<TaskId, (i64, Drain)>>,
    basis: Option<Basis>,
}

/// What a look at a node's tasks stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Basis {
    touched_at: i64,
    /// The table that all nodes hold, if a task waits for them to hold a newer one.
    acked_by_all: Option<i64>,
}

impl SentAssignments {
    /// Whether the node's tasks have to be looked at: something that its assignments are made of
    /// has changed since the last look.
    pub fn may_differ(&self, node: &NodeId, snapshot: &ClusterSnapshot) -> bool {
        self.basis.is_none_or(|basis| {
            basis.touched_at != snapshot.touched_at(node)
                || basis.acked_by_all.is_some_and(|acked| acked != snapshot.acked_by_all())
        })
    }
}

/// What to tell `node` now: everything the first time, then what changed; nothing if nothing did.
/// `open` opens sealed credentials.
///
/// # Errors
/// An assignment has no JSON form.
pub fn tell(
    told: &mut SentAssignments,
    node: &NodeId,
    snapshot: &ClusterSnapshot,
    open: &dyn Fn(&Sealed) -> Option<RegistryAuth>,
) -> Result<Option<proto::Assignments>, serde_json::Error> {
    if !told.may_differ(node, snapshot) {
        return Ok(None);
    }
    let full = told.tasks.is_none();
    let known = told.tasks.take().unwrap_or_default();
    let mut now = BTreeMap::new();
    let mut set = Vec::new();
    for task in snapshot.tasks_on(node) {
        // A spec that isn't there yet comes with a later snapshot.
        let Some(spec) = snapshot.spec_of(task) else { continue };
        let drain = drain::of(snapshot, task);
        now.insert(task.id.clone(), (task.mod_revision, drain));
        if known.get(&task.id) != Some(&(task.mod_revision, drain)) {
            let mut assignment = assignment(task, spec, snapshot, drain);
            let service = snapshot.services.get(&task.service_id);
            let sealed = service.and_then(|service| service.registry_auth.as_ref());
            assignment.registry_auth =
                sealed.filter(|_| assignment.task.desired_state <= TaskState::Running).and_then(open);
            let assignment_json = written(&assignment)?;
            set.push(proto::Assignment { task_id: task.id.to_string(), assignment_json });
        }
    }
    let gone = known.keys().filter(|id| !now.contains_key(id));
    let removed_task_ids: Vec<String> = gone.map(ToString::to_string).collect();
    let is_awaited = now.iter().any(|(id, (_, drain))| {
        !drain.announced && snapshot.tasks.get(id).is_some_and(|task| task.desired_state > TaskState::Running)
    });
    let acked_by_all = is_awaited.then(|| snapshot.acked_by_all());
    told.basis = Some(Basis { touched_at: snapshot.touched_at(node), acked_by_all });
    told.tasks = Some(now);
    let news = full || !set.is_empty() || !removed_task_ids.is_empty();
    Ok(news.then_some(proto::Assignments { full, set, removed_task_ids }))
}

/// An assignment as it is sent: without fields of the spec that Docker has not. They change
/// nothing, and an agent refuses what it doesn't know.
fn written(assignment: &Assignment) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(assignment)?;
    if let Some(spec) = value.get_mut("spec") {
        meaning::keep_known(spec, &shapes::TASK_SPEC);
    }
    serde_json::to_string(&value)
}

fn assignment(
    task: &Stored<Task>,
    spec: &ServiceSpec,
    snapshot: &ClusterSnapshot,
    drain: Drain,
) -> Assignment {
    let mut task = task.value.clone();
    if snapshot.state_of(&task).is_terminal() {
        task.desired_state = task.desired_state.max(TaskState::Shutdown);
    }
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    let host_ports: Vec<PortConfig> =
        ports.filter(|port| port.publish_mode == PublishMode::Host).cloned().collect();
    Assignment {
        name: format!("{}.{}", spec.name, task.slot),
        service_name: spec.name.clone(),
        service_labels: spec.labels.clone(),
        spec: spec.task_template.clone(),
        host_ports,
        task,
        drain,
        registry_auth: None,
        networks: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{World, ingress, service, task};

    fn world() -> World {
        let mut world = World::with_nodes(["a", "b"]);
        let mut web = service("web", 2);
        web.spec.labels.insert("k".to_owned(), "v".to_owned());
        world.put_service(&web);
        assign(&mut world, "t1", 1, "a", TaskState::Running);
        assign(&mut world, "t2", 2, "b", TaskState::Running);
        world
    }

    fn assign(world: &mut World, id: &str, slot: u64, node: &str, desired: TaskState) {
        let mut task = task(id, "web", slot);
        task.node_id = Some(node.into());
        task.desired_state = desired;
        world.put_task(&task);
    }

    /// What a message says: whether it is full, the tasks set with their desired states, the tasks
    /// removed.
    type Said = (bool, Vec<(String, TaskState)>, Vec<String>);

    fn read(message: &proto::Assignments) -> Said {
        let set = message.set.iter().map(|one| {
            let assignment: Assignment = serde_json::from_str(&one.assignment_json).unwrap();
            (one.task_id.clone(), assignment.task.desired_state)
        });
        (message.full, set.collect(), message.removed_task_ids.clone())
    }

    /// Opens what isn't sealed at all.
    #[expect(clippy::unnecessary_wraps, reason = "opening may fail elsewhere")]
    fn opened(sealed: &Sealed) -> Option<RegistryAuth> {
        Some(RegistryAuth(sealed.0.clone()))
    }

    #[test]
    fn credentials_go_with_tasks_that_are_to_run() {
        let mut world = world();
        let mut web = world.snapshot.services[&"web".into()].value.clone();
        web.registry_auth = Some(Sealed("x".to_owned()));
        world.put_service(&web);
        let auth = |world: &World| {
            let message = tell(&mut SentAssignments::default(), &"a".into(), &world.snapshot, &opened)
                .unwrap()
                .unwrap();
            serde_json::from_str::<Assignment>(&message.set[0].assignment_json).unwrap().registry_auth
        };
        assert_eq!(auth(&world), Some(RegistryAuth("x".to_owned())));
        assign(&mut world, "t1", 1, "a", TaskState::Shutdown);
        assert_eq!(auth(&world), None, "it needs no image any more");
    }

    fn told(told: &mut SentAssignments, world: &World) -> Option<Said> {
        tell(told, &"a".into(), &world.snapshot, &opened).unwrap().as_ref().map(read)
    }

    fn set(id: &str, state: TaskState) -> Vec<(String, TaskState)> {
        vec![(id.to_owned(), state)]
    }

    #[test]
    fn everything_first_then_what_changed() {
        let (mut world, mut known) = (world(), SentAssignments::default());
        assert_eq!(told(&mut known, &world), Some((true, set("t1", TaskState::Running), vec![])));
        assert_eq!(told(&mut known, &world), None, "nothing changed");
        world.report(&"t1".into(), TaskState::Running);
        assert_eq!(told(&mut known, &world), None, "a status is the node's own word");

        assign(&mut world, "t1", 1, "a", TaskState::Shutdown);
        assert_eq!(told(&mut known, &world), Some((false, set("t1", TaskState::Shutdown), vec![])));
        world.delete(mesh_state::keys::task(&"t1".into()));
        assert_eq!(told(&mut known, &world), Some((false, vec![], vec!["t1".to_owned()])));
    }

    #[test]
    fn a_nodes_tasks_are_looked_at_only_when_they_may_differ() {
        let (mut world, mut known) = (world(), SentAssignments::default());
        world.put_service(&service("other", 1));
        let mut elsewhere = task("t3", "other", 1);
        elsewhere.node_id = Some("b".into());
        world.put_task(&elsewhere);
        told(&mut known, &world);
        let looks = |known: &mut SentAssignments, world: &World| {
            let looks = known.may_differ(&"a".into(), &world.snapshot);
            tell(known, &"a".into(), &world.snapshot, &opened).unwrap();
            looks
        };
        assert!(!looks(&mut known, &world), "nothing changed");
        world.report(&"t3".into(), TaskState::Running);
        world.put_service(&service("other", 2));
        world.put(mesh_state::keys::ack(&"b".into()), &9_u64);
        world.set_liveness(&"b".into(), mesh_state::node::NodeState::Silent);
        assert!(!looks(&mut known, &world), "others' tasks, acknowledgements and liveness are not its own");
        world.report(&"t1".into(), TaskState::Running);
        assert!(looks(&mut known, &world), "a status of its own task");
        world.update_service("web", |spec| drop(spec.labels.insert("x".to_owned(), "y".to_owned())));
        assert!(looks(&mut known, &world), "its task's service");
        assign(&mut world, "t1", 1, "b", TaskState::Running);
        assert!(looks(&mut known, &world), "its task went elsewhere");
        assert!(!looks(&mut known, &world));
        let listed = ClusterSnapshot::from_listing(world.snapshot.revision + 1, Vec::new());
        assert!(known.may_differ(&"a".into(), &listed), "what was missed while the watch was down");
    }

    #[test]
    fn a_drain_that_waits_for_acknowledgements_is_looked_at_when_they_come() {
        let (mut world, mut known) = (world(), SentAssignments::default());
        world.report(&"t1".into(), TaskState::Running);
        let mut served = world.snapshot.tasks[&"t1".into()].value.clone();
        served.endpoints = vec![crate::fixtures::endpoint(7, 80)];
        served.desired_state = TaskState::Shutdown;
        world.put_task(&served);
        told(&mut known, &world);
        let revision = u64::try_from(world.snapshot.revision).unwrap();
        world.put(mesh_state::keys::ack(&"a".into()), &revision);
        assert_eq!(told(&mut known, &world), None, "b has yet to acknowledge");
        world.put(mesh_state::keys::ack(&"b".into()), &revision);
        assert!(told(&mut known, &world).is_some(), "the drain is announced");
    }

    #[test]
    fn a_node_without_tasks_is_told_so_once() {
        let mut known = SentAssignments::default();
        let world = World::with_nodes(["a"]);
        assert_eq!(told(&mut known, &world), Some((true, vec![], vec![])));
        assert_eq!(told(&mut known, &world), None);
    }

    #[test]
    fn a_task_that_ended_is_never_one_to_run() {
        let mut world = world();
        world.report(&"t1".into(), TaskState::Failed);
        let seen = told(&mut SentAssignments::default(), &world);
        assert_eq!(
            seen,
            Some((true, set("t1", TaskState::Shutdown), vec![])),
            "told to a node that lost its memory"
        );
    }

    #[test]
    fn an_assignment_names_what_containers_are_called_and_published_by() {
        let mut world = World::with_nodes(["a"]);
        let mut web = service("web", 1);
        let mut host = ingress(9000, 80);
        host.publish_mode = PublishMode::Host;
        web.spec.endpoint_spec.get_or_insert_default().ports = vec![ingress(80, 80), host.clone()];
        web.spec.labels.insert("k".to_owned(), "v".to_owned());
        let container = web.spec.task_template.container_spec.get_or_insert_default();
        container.extra.insert("Extra".to_owned(), 1.into());
        container.extra.insert("Init".to_owned(), true.into());
        world.put_service(&web);
        assign(&mut world, "t1", 1, "a", TaskState::Running);
        let message =
            tell(&mut SentAssignments::default(), &"a".into(), &world.snapshot, &opened).unwrap().unwrap();
        let assignment: Assignment = serde_json::from_str(&message.set[0].assignment_json).unwrap();
        assert_eq!((assignment.name.as_str(), assignment.service_name.as_str()), ("web.1", "web"));
        assert_eq!(assignment.host_ports, [host]);
        assert_eq!(assignment.service_labels.get("k").map(String::as_str), Some("v"));
        let container = assignment.spec.container_spec.unwrap();
        assert_eq!(container.image, "nginx");
        assert_eq!(
            container.extra.keys().collect::<Vec<_>>(),
            ["Init"],
            "a field that Docker has not is not told"
        );
    }
}
