//! How a task drains before it stops: every node learns that the task gets no new flows, then its
//! live flows have a while to end.
//!
//! Invariants: pure; a task that no mesh table ever held has nothing to announce; a node that is
//! down is not waited for, one that is silent is.
//!
//! Left to others: counting live flows and stopping the container (the task's agent), and what the
//! table says ([`crate::node_service::mesh_table`]).

use std::time::Duration;

use mesh_state::lb::LbSettings;
use mesh_state::task::{Drain, Task, TaskState};

use crate::feed::snapshot::{ClusterSnapshot, Stored};

/// How long live flows of a task may take to end: its service's label, or the label at the
/// service's removal. Zero for a task without published ports.
pub fn limit(snapshot: &ClusterSnapshot, task: &Task) -> Duration {
    if !task.is_in_mesh() {
        return Duration::ZERO;
    }
    let service = snapshot.services.get(&task.service_id).map(|service| &service.spec);
    let spec = service.or_else(|| snapshot.spec_of(task));
    // Labels were checked when they were written; one of a later version of mesh counts as the
    // default here.
    spec.and_then(|spec| LbSettings::from_labels(&spec.labels).ok()).unwrap_or_default().drain_timeout()
}

/// The drain that a task's node is sent with its assignment.
pub fn of(snapshot: &ClusterSnapshot, task: &Stored<Task>) -> Drain {
    Drain {
        announced: is_announced(snapshot, task),
        limit_s: u32::try_from(limit(snapshot, task).as_secs()).unwrap_or(u32::MAX),
    }
}

/// Whether every node that isn't down has acknowledged a mesh table in which the task gets no new
/// flows.
fn is_announced(snapshot: &ClusterSnapshot, task: &Stored<Task>) -> bool {
    if task.desired_state <= TaskState::Running {
        return false;
    }
    if !task.is_in_mesh() || snapshot.state_of(task) != TaskState::Running {
        return true;
    }
    snapshot.acked_by_all() >= task.mod_revision
}

#[cfg(test)]
mod tests {
    use mesh_state::keys;
    use mesh_state::node::NodeState;

    use super::*;
    use crate::fixtures::{World, endpoint, service, task};

    /// A task behind port 80 that is to stop, on node `a` of the nodes `a` and `b`.
    fn world() -> World {
        let mut world = World::with_nodes(["a", "b"]);
        world.put_service(&service("web", 1));
        let mut old = task("t", "web", 1);
        old.node_id = Some("a".into());
        old.endpoints = vec![endpoint(7, 80)];
        old.desired_state = TaskState::Shutdown;
        world.put_task(&old);
        world.report(&old.id, TaskState::Running);
        world
    }

    fn seen(world: &World) -> Drain {
        of(&world.snapshot, &world.snapshot.tasks[&"t".into()])
    }

    #[test]
    fn a_drain_is_announced_once_every_node_that_may_forward_acknowledged_it() {
        let mut world = world();
        let revision = u64::try_from(world.snapshot.tasks[&"t".into()].mod_revision).unwrap();
        assert!(!seen(&world).announced, "no node has acknowledged a table");
        world.put(keys::ack(&"a".into()), &revision);
        world.put(keys::ack(&"b".into()), &(revision - 1));
        assert!(!seen(&world).announced, "b has an older table");
        world.set_liveness(&"b".into(), NodeState::Silent);
        assert!(!seen(&world).announced, "b's data plane may forward by its old table");
        world.set_liveness(&"b".into(), NodeState::Down);
        assert!(seen(&world).announced, "b is down");
        world.set_liveness(&"b".into(), NodeState::Ready);
        world.put(keys::ack(&"b".into()), &revision);
        assert!(seen(&world).announced);
    }

    #[test]
    fn a_task_that_no_table_held_is_announced_at_once() {
        let mut world = world();
        let mut bare = world.snapshot.tasks[&"t".into()].value.clone();
        bare.endpoints.clear();
        world.put_task(&bare);
        assert!(seen(&world).announced, "it has no published port");
        bare.desired_state = TaskState::Running;
        world.put_task(&bare);
        assert!(!seen(&world).announced, "the task is wanted");
    }

    #[test]
    fn the_limit_is_the_labels_and_outlives_the_service() {
        let mut world = world();
        assert_eq!(seen(&world).limit_s, 30, "without a label");
        world.update_service("web", |spec| {
            spec.labels.insert(mesh_state::lb::DRAIN_TIMEOUT_LABEL.to_owned(), "2m".to_owned());
        });
        assert_eq!(seen(&world).limit_s, 120);
        let mut newer = world.snapshot.tasks[&"t".into()].value.clone();
        newer.spec_version = 2;
        world.put_task(&newer);
        world.remove_service("web");
        assert_eq!(seen(&world).limit_s, 120, "after the service is gone");
    }
}
