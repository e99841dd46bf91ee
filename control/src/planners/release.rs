//! Releases published ports that only a task which can't or won't stop still holds.
//!
//! A removed service, or a dropped slot, stays in the mesh table until its tasks have stopped, so
//! that their live flows may end. The node of such a task may be down, and its engine may hang:
//! then no report of the task's end would come, and the ports would be refused to every other
//! service. So once the drain's limit has passed, the leader removes the task's backends, of ports
//! and of virtual IPs, and with them the ports that the mesh table holds for it. The task's record
//! stays until its node reports its end, or it is orphaned, and so do its addresses on networks:
//! its container may still have them.
//!
//! The planner decides from the moment at which the task was asked to stop, by this manager's
//! clock, and from the drain limit of the spec that the task was made from. It can't see live
//! flows. A node that is heard counts them and stops the task itself when they end or the limit
//! passes, counted from when the node got the order. So such a node has ten seconds more: then
//! every flow there has had the whole limit, as on any other node. On a node that is down nothing
//! counts flows, and most have died with it.
//!
//! Invariant: pure; a task loses its backends only after it was asked to stop and its drain's limit
//! has passed.
//!
//! Left to others: asking tasks to stop, and deleting them (`reaper`).

use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::node::NodeState;
use mesh_state::task::{Task, TaskState};
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::{Action, Plan};
use crate::slots::drain;
use crate::slots::restart_policy::after;

/// A node that is heard counts the drain's limit from when it got the order, at most this long
/// after the order was written.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Removes backends whose drain limit has passed; asks for a pass when the next limit passes.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    for task in snapshot.tasks.values().filter(|task| holds_backends(snapshot, task)) {
        let asked_at = snapshot.asked_to_stop_at(task).unwrap_or(task.created_at).min(now);
        if let Some(moment) = after(asked_at, limit(snapshot, task)).filter(|moment| *moment > now) {
            plan.wake_by(moment);
            continue;
        }
        plan.reasons.push(format!(
            "task {} gives up its published ports and its place behind virtual IPs: it was to go, and the time for its flows has passed",
            task.id
        ));
        let mut released = Task { endpoints: Vec::new(), ..task.value.clone() };
        released.attachments.iter_mut().for_each(|attachment| attachment.backend_id = None);
        plan.actions.push(Action::UpdateTask { task: released, expected: task.mod_revision });
    }
    plan
}

fn holds_backends(snapshot: &ClusterSnapshot, task: &Task) -> bool {
    task.desired_state == TaskState::Remove
        && task.backend_ids().next().is_some()
        && !snapshot.state_of(task).is_terminal()
}

fn limit(snapshot: &ClusterSnapshot, task: &Task) -> Duration {
    let drain = drain::limit(snapshot, task);
    let is_heard = task.node_id.as_ref().is_some_and(|node| snapshot.node_state(node) == NodeState::Ready);
    if is_heard { drain + TOLD_WITHIN } else { drain }
}

#[cfg(test)]
mod tests {
    use mesh_state::ids::BackendId;
    use mesh_state::lb::DRAIN_TIMEOUT_LABEL;
    use mesh_state::network::Attachment;
    use mesh_state::task::{ContainerStatus, TaskStatus};

    use super::*;
    use crate::fixtures::{World, endpoint, ingress, network, service, task};
    use crate::node_service::mesh_table::Table;
    use crate::planners::reaper;

    /// A service on port 80 with a drain limit of 20 s, whose one task runs on node `a`.
    fn world() -> World {
        let mut world = World::with_nodes(["a", "b"]);
        let mut web = service("web", 1);
        web.ports = vec![ingress(80, 80)];
        web.spec.labels.insert(DRAIN_TIMEOUT_LABEL.to_owned(), "20s".to_owned());
        world.put_service(&web);
        let mut one = task("t", "web", 1);
        one.node_id = Some("a".into());
        one.endpoints = vec![endpoint(7, 80)];
        world.put_task(&one);
        let container =
            ContainerStatus { address: Some("10.128.0.2".parse().unwrap()), ..ContainerStatus::default() };
        let status =
            TaskStatus { state: TaskState::Running, container: Some(container), ..TaskStatus::default() };
        world.report_status(&one.id, status);
        world
    }

    /// Whether the mesh table still holds the published port.
    fn is_published(world: &World) -> bool {
        !Table::of(&world.snapshot).whole().services.is_empty()
    }

    /// Removes the service; returns after how many seconds its port is free.
    fn free_after(mut world: World) -> i64 {
        world.remove_service("web");
        world.run(reaper::plan);
        assert!(is_published(&world), "live flows may end");
        for second in 0..100 {
            let plan = world.run(plan);
            if !is_published(&world) {
                assert!(
                    world.snapshot.tasks.contains_key(&"t".into()),
                    "no report says that the task has ended"
                );
                assert_eq!(world.run(self::plan), Plan::default(), "planned on its own result");
                return second;
            }
            assert!(plan.wake_at.is_some(), "the plan asks for no further pass");
            world.pass(1);
        }
        panic!("the port was never free");
    }

    #[test]
    fn the_port_of_a_removed_service_is_free_after_the_drains_limit_whatever_its_nodes_do() {
        for state in [NodeState::Down, NodeState::Silent] {
            let mut world = world();
            world.set_liveness(&"a".into(), state);
            assert_eq!(free_after(world), 20, "the task's node is {}", state.as_str());
        }
        assert_eq!(free_after(world()), 30, "the node is heard, but its task doesn't stop");
    }

    #[test]
    fn a_dropped_slot_loses_its_backends_and_a_wanted_task_keeps_them() {
        let mut world = world();
        world.set_liveness(&"a".into(), NodeState::Down);
        assert_eq!(world.run(plan), Plan::default(), "the task is wanted");
        let mut dropped = world.snapshot.tasks[&"t".into()].value.clone();
        dropped.desired_state = TaskState::Remove;
        dropped.shutdown_at = Some(world.now);
        world.put_task(&dropped);
        world.pass(20);
        world.run(plan);
        let table = Table::of(&world.snapshot).whole();
        assert_eq!((table.services.len(), table.backends.len()), (1, 0), "the service itself stays");
    }

    #[test]
    fn a_place_behind_a_virtual_ip_is_let_go_of_and_the_address_is_kept() {
        let mut world = World::with_nodes(["a"]);
        world.put_network(&network("app", "10.0.5.0/24", 1));
        let mut one = task("t", "web", 1);
        one.node_id = Some("a".into());
        one.desired_state = TaskState::Remove;
        one.shutdown_at = Some(world.now);
        let address = "10.0.5.9".parse().ok();
        one.attachments =
            vec![Attachment { network_id: "app".into(), address, backend_id: BackendId::new(7) }];
        world.put_task(&one);
        world.report(&one.id, TaskState::Running);
        world.pass(100);
        world.run(plan);
        let left = &world.snapshot.tasks[&"t".into()].attachments[0];
        assert_eq!((left.address, left.backend_id), (address, None), "its container may still have it");
        assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    }
}
