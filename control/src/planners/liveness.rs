//! Decides which nodes are down, and which of their tasks are orphaned.
//!
//! It decides from one key per node, which the manager that has the node's session writes: ready,
//! or silent. A ready node whose manager has no lease any more becomes silent here, as no manager
//! is left to write it. A node that stays silent for three of the cluster's heartbeats is down. Its
//! tasks are orphaned after 24 hours, as in Swarm; those of a removed node at once.
//!
//! Silence is measured by this manager's clock, from the moment at which its own watch saw the node
//! fall silent. The moment in the record is from another machine's clock and is used only by a
//! manager that began after it was written. A new leader has followed the same watch, so it judges
//! much as the one before.
//!
//! It can't tell a dead node from one that no manager reaches. Containers behind a partition go on,
//! and a replacement is started elsewhere, so a service may have more tasks than it asks for, and
//! two tasks may hold one slot, until the node is back and stops its own. That is Swarm's answer as
//! well: the alternative, to wait, makes every lost machine an outage. Clients hardly notice: a
//! backend of a node that is silent or down is selected only when its service has no other.
//!
//! Invariants: only the manager that has a node's session writes `ready` and `silent`, except for a
//! node without one; `down` is written here alone, and only by the passing of time. With no manager
//! in the store, no node is judged.
//!
//! Left to others: replacing the tasks of a node that is down (`restart`), and selecting other
//! backends than a silent node's (the mesh table).

use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::cluster::heartbeat_period_ns;
use mesh_state::ids::NodeId;
use mesh_state::node::{Liveness, NodeState};
use mesh_state::task::{Task, TaskState, TaskStatus};
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};
use crate::slots::restart_policy::after;

/// How many of the cluster's heartbeats a node must be silent for to be down.
const HEARTBEATS_MISSED: u64 = 3;

/// How long a node must be down for its tasks to be orphaned.
pub const ORPHAN_AFTER: Duration = Duration::from_hours(24);

/// Decides the liveness of every node.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    for node in snapshot.nodes.values() {
        if let Some(liveness) = snapshot.liveness.get(&node.id) {
            judge(now, snapshot, &node.id, liveness, &mut plan);
        }
    }
    orphan_of_removed_nodes(now, snapshot, &mut plan);
    plan
}

fn judge(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    id: &NodeId,
    liveness: &Stored<Liveness>,
    plan: &mut Plan,
) {
    match liveness.state {
        // Without any manager in the store, the absence of one means nothing.
        NodeState::Ready
            if snapshot.managers.is_empty() || snapshot.managers.contains_key(&liveness.manager) => {}
        NodeState::Ready => set(now, id, liveness, NodeState::Silent, "its manager is gone", plan),
        NodeState::Silent => {
            // The stamp may be of another manager's clock.
            let since = snapshot.liveness_since(id, liveness);
            match after(since, silence_max(snapshot)).filter(|moment| *moment > now) {
                Some(moment) => plan.wake_by(moment),
                None => set(now, id, liveness, NodeState::Down, "heartbeat failure", plan),
            }
        }
        NodeState::Down => {
            judge_tasks(now, snapshot, id, snapshot.liveness_since(id, liveness), plan);
        }
    }
}

fn silence_max(snapshot: &ClusterSnapshot) -> Duration {
    let period =
        snapshot.cluster.as_ref().map_or_else(heartbeat_period_ns, |cluster| cluster.heartbeat_period_ns);
    Duration::from_nanos(period.saturating_mul(HEARTBEATS_MISSED))
}

fn judge_tasks(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    id: &NodeId,
    down_since: Timestamp,
    plan: &mut Plan,
) {
    let mut held = snapshot.tasks_on(id).filter(|task| can_be_orphaned(snapshot, task)).peekable();
    if held.peek().is_none() {
        return;
    }
    if let Some(moment) = after(down_since, ORPHAN_AFTER).filter(|moment| *moment > now) {
        plan.wake_by(moment);
        return;
    }
    held.for_each(|task| orphan(now, snapshot, task, "node has been down for 24 hours", plan));
}

fn set(
    now: Timestamp,
    id: &NodeId,
    old: &Stored<Liveness>,
    state: NodeState,
    message: &str,
    plan: &mut Plan,
) {
    plan.reasons.push(format!("node {id} is {}: {message}", state.as_str()));
    let liveness = Liveness { state, since: now, message: message.to_owned(), manager: old.manager.clone() };
    plan.actions.push(Action::SetLiveness { node: id.clone(), liveness, expected: Some(old.mod_revision) });
}

fn orphan_of_removed_nodes(now: Timestamp, snapshot: &ClusterSnapshot, plan: &mut Plan) {
    for task in snapshot.tasks.values() {
        let removed = task.node_id.as_ref().is_some_and(|node| !snapshot.nodes.contains_key(node));
        if removed && can_be_orphaned(snapshot, task) {
            orphan(now, snapshot, task, "node has been removed", plan);
        }
    }
}

fn can_be_orphaned(snapshot: &ClusterSnapshot, task: &Task) -> bool {
    !snapshot.state_of(task).is_terminal()
}

fn orphan(now: Timestamp, snapshot: &ClusterSnapshot, task: &Task, message: &str, plan: &mut Plan) {
    let reported = snapshot.statuses.get(&task.id);
    let last = snapshot.status_of(task).clone();
    plan.reasons.push(format!("task {} is orphaned: {message}", task.id));
    plan.actions.push(Action::SetStatus {
        task: task.id.clone(),
        status: TaskStatus {
            state: TaskState::Orphaned,
            timestamp: now,
            message: message.to_owned(),
            ..last
        },
        expected: reported.map(|status| status.mod_revision),
    });
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::fixtures::{World, service, task};

    fn state(world: &World) -> NodeState {
        world.snapshot.node_state(&"a".into())
    }

    #[test]
    fn a_node_is_down_after_fifteen_silent_seconds_and_not_before() {
        let mut world = World::with_nodes(["a"]);
        world.set_liveness(&"a".into(), NodeState::Silent);
        let plan = world.run(plan);
        assert_eq!(plan.wake_at, Some(world.now + TimeDelta::seconds(15)));
        world.pass(14);
        world.run(super::plan);
        assert_eq!(state(&world), NodeState::Silent, "down after 14 s");
        world.pass(1);
        world.run(super::plan);
        let liveness = &world.snapshot.liveness[&"a".into()];
        assert_eq!(
            (liveness.state, liveness.since, liveness.message.as_str()),
            (NodeState::Down, world.now, "heartbeat failure")
        );
    }

    #[test]
    fn the_silence_of_a_node_is_measured_by_one_clock() {
        for skew in [-3600, 3600] {
            let mut world = World::with_nodes(["a"]);
            let node = "a".into();
            world.set_liveness(&node, NodeState::Silent);
            // As if a manager had written it whose clock is an hour off; this manager saw it now.
            let mut told = world.snapshot.liveness[&node].value.clone();
            told.since = world.now + TimeDelta::seconds(skew);
            world.put(mesh_state::keys::liveness(&node), &told);
            world.snapshot.liveness_seen.insert(node, world.now);
            assert_eq!(world.run(plan).wake_at, Some(world.now + TimeDelta::seconds(15)), "skew {skew} s");
            assert_eq!(state(&world), NodeState::Silent, "down at once with a skew of {skew} s");
            world.pass(15);
            world.run(super::plan);
            assert_eq!(state(&world), NodeState::Down, "never down with a skew of {skew} s");
        }
    }

    #[test]
    fn the_operator_sets_the_length_of_a_heartbeat() {
        let mut world = World::with_nodes(["a"]);
        let mut cluster = world.snapshot.cluster.as_ref().unwrap().value.clone();
        cluster.heartbeat_period_ns = 20_000_000_000;
        world.put_cluster(&cluster);
        world.set_liveness(&"a".into(), NodeState::Silent);
        assert_eq!(world.run(plan).wake_at, Some(world.now + TimeDelta::seconds(60)));
    }

    #[test]
    fn a_node_whose_manager_vanished_is_silent() {
        let mut world = World::with_nodes(["a"]);
        world.run(plan);
        assert_eq!(state(&world), NodeState::Ready, "no manager is known at all");
        let manager =
            |name: &str| mesh_state::cluster::Manager { name: name.to_owned(), ..Default::default() };
        world.put(mesh_state::keys::manager("m1"), &manager("m1"));
        world.run(plan);
        assert_eq!(state(&world), NodeState::Ready, "its manager is alive");
        world.put(mesh_state::keys::manager("m2"), &manager("m2"));
        world.delete(mesh_state::keys::manager("m1"));
        world.run(plan);
        assert_eq!(state(&world), NodeState::Silent, "its manager is gone");
    }

    #[test]
    fn tasks_are_orphaned_a_day_after_their_node_went_down() {
        let mut world = World::with_nodes(["a"]);
        world.put_service(&service("web", 1));
        let mut running = task("t", "web", 1);
        running.node_id = Some("a".into());
        world.put_task(&running);
        world.report(&running.id, TaskState::Running);
        world.set_liveness(&"a".into(), NodeState::Down);
        world.pass(86_399);
        assert_eq!(world.run(plan).wake_at, Some(world.now + TimeDelta::seconds(1)));
        assert_eq!(world.snapshot.state_of(&running), TaskState::Running);
        world.pass(1);
        world.run(plan);
        assert_eq!(world.snapshot.state_of(&running), TaskState::Orphaned);
        assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    }

    #[test]
    fn tasks_of_a_removed_node_are_orphaned_at_once() {
        let mut world = World::with_nodes(["a"]);
        world.put_service(&service("web", 1));
        let mut running = task("t", "web", 1);
        running.node_id = Some("gone".into());
        world.put_task(&running);
        world.run(plan);
        assert_eq!(world.snapshot.state_of(&running), TaskState::Orphaned);
    }
}
