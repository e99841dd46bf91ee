//! Stops tasks whose node no longer meets their constraints, after a label or a role was changed.
//!
//! It decides from the spec that each task was made from, and from its node as it is now. A changed
//! spec is the updater's: judged by the new one, all tasks would stop at once instead of a few at a
//! time.
//!
//! It checks constraints alone. What a node can run out of (CPUs, memory, host ports) and the
//! platform were checked when the task was placed. A node that reports fewer CPUs than before keeps
//! its tasks: they run, and stopping them would be an outage that no user asked for. The scheduler
//! just places no more tasks there. A constraint, however, is an order of the user.
//!
//! It can't see whether another node has room. So a task may stop and find no other node, and its
//! slot waits with the scheduler's reason. That is what the user asked for, too: the task must not
//! run there.
//!
//! Invariants: a task is judged by the spec that it was made from; a task whose spec is not stored
//! is left alone.
//!
//! Left to others: filling the slot again (`replicated`, `global`).

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::ServiceId;
use mesh_state::task::TaskState;
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::{Action, Plan};
use crate::slots;
use crate::slots::create::stopped;
use crate::slots::eligible::Suits;

/// The error that `docker service ps` shows for such a task.
pub const ERROR: &str = "assigned node no longer meets constraints";

/// Stops tasks whose node no longer meets their constraints.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut read: BTreeMap<(&ServiceId, u64), Option<Suits>> = BTreeMap::new();
    for task in snapshot.tasks.values().filter(|task| slots::is_wanted(task)) {
        let Some(node) = task.node_id.as_ref().and_then(|id| snapshot.nodes.get(id)) else { continue };
        let suits = read
            .entry((&task.service_id, task.spec_version))
            .or_insert_with(|| snapshot.spec_of(task).map(|spec| Suits::new(&spec.task_template)));
        let fits = suits.as_ref().is_none_or(|suits| suits.constraints_hold(node));
        if fits || snapshot.state_of(task).is_terminal() {
            continue;
        }
        plan.reasons
            .push(format!("task {} stops: node {} no longer meets its constraints", task.id, node.id));
        let mut action = stopped(now, task, TaskState::Shutdown);
        if let Action::UpdateTask { task, .. } = &mut action {
            ERROR.clone_into(&mut task.leader_status.err);
        }
        plan.actions.push(action);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{World, service, task};

    #[test]
    fn a_changed_label_stops_the_task_with_a_reason() {
        let mut world = World::with_nodes(["a"]);
        world.update_node("a", |node| drop(node.spec.labels.insert("zone".to_owned(), "in".to_owned())));
        let mut web = service("web", 1);
        web.spec
            .task_template
            .placement
            .get_or_insert_default()
            .constraints
            .push("node.labels.zone==in".to_owned());
        world.put_service(&web);
        let mut running = task("t", "web", 1);
        running.node_id = Some("a".into());
        world.put_task(&running);
        world.report(&running.id, TaskState::Running);
        assert_eq!(world.run(plan), Plan::default(), "the node meets the constraint");

        world.update_node("a", |node| drop(node.spec.labels.insert("zone".to_owned(), "out".to_owned())));
        world.run(plan);
        let stopped = &world.snapshot.tasks[&running.id];
        assert_eq!((stopped.desired_state, stopped.shutdown_at), (TaskState::Shutdown, Some(world.now)));
        world.report(&running.id, TaskState::Shutdown);
        assert_eq!(world.snapshot.error_of(&world.snapshot.tasks[&running.id]), ERROR);
        assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    }

    #[test]
    fn a_changed_spec_is_left_to_the_updater() {
        let mut world = World::with_nodes(["a"]);
        world.put_service(&service("web", 1));
        let mut running = task("t", "web", 1);
        running.node_id = Some("a".into());
        world.put_task(&running);
        world.update_service("web", |spec| {
            let placement = spec.task_template.placement.get_or_insert_default();
            placement.constraints.push("node.labels.zone==in".to_owned());
        });
        assert_eq!(world.run(plan), Plan::default());
    }
}
