//! Which nodes are down, and which of their tasks are given up.
//!
//! Invariants: `ready` and `silent` are written by the manager that holds a node's stream; `down` is written here alone, and only by
//! the passing of time. A node whose manager died without a word is silent from the moment that is seen.
//!
//! Left to others: replacing the tasks of a node that is down (restart), and taking a silent one out of the mesh (the mesh table).

use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use mesh_state::node::{Liveness, NodeState};
use mesh_state::task::{Task, TaskState, TaskStatus};
use rand::RngCore;

use crate::plan::{Action, Plan};
use crate::restart::decide::after;
use crate::snapshot::{ClusterSnapshot, Stored};

/// A node is down when it has been silent for three heartbeats of 5 s.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Tasks of a node that has been down for so long are orphaned.
pub const ORPHAN_AFTER: Duration = Duration::from_hours(24);

/// Judges every node.
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
        // Without any manager in the store nothing can be told from one's absence.
        NodeState::Ready
            if snapshot.managers.is_empty() || snapshot.managers.contains_key(&liveness.manager) => {}
        NodeState::Ready => set(now, id, liveness, NodeState::Silent, "its manager is gone", plan),
        NodeState::Silent => match after(liveness.since, SILENCE_MAX).filter(|moment| *moment > now) {
            Some(moment) => plan.wake_by(moment),
            None => set(now, id, liveness, NodeState::Down, "heartbeat failure", plan),
        },
        NodeState::Down => judge_tasks(now, snapshot, id, liveness.since, plan),
    }
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
