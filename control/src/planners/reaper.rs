//! Deletes what no record needs any more: tasks of removed services and dropped slots, history
//! beyond its limit, spec versions without tasks.
//!
//! It decides from what still refers to a record. A task may go once no node can hold anything of
//! it: it ended, it was never placed, or its node is no member any more. Until then its record is
//! the only thing that makes its agent stop it, and that keeps its flows draining in the mesh
//! table. A spec version may go once no task was made from it and its service neither has it nor
//! may return to it.
//!
//! Of each slot, the newest ended tasks stay, as many as the cluster's task history limit says, for
//! `docker service ps`. Ends that the restart policy counts stay in any case: without them, a task
//! that may restart three times would restart for ever.
//!
//! It can't see what a node that is down still runs. So the tasks of a removed service stay, each
//! with its record, until the node comes back, is removed, or was down for 24 hours. They cost a
//! key each; a task without a record would run for ever.
//!
//! Invariants: no task is deleted while its node may still run it, unless that node is no member
//! any more; a slot's newest task stays for as long as the slot does; the attempts that a restart
//! policy counts stay.
//!
//! Left to others: deciding that a slot is dropped (`replicated`, `global`), releasing ports that a
//! task on a lost node holds (`release`).

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::Timestamp;
use mesh_state::ids::{ServiceId, TaskId};
use mesh_state::task::{Task, TaskState};
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};
use crate::slots::create::stopped;
use crate::slots::history;
use crate::slots::restart_policy;
use crate::slots::{self, SlotTasks};

/// Ended tasks kept in each slot when the cluster's record sets no limit, as in Swarm.
const HISTORY_LIMIT: u64 = 5;

/// Asks tasks of removed services to stop, and deletes records that are not needed.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    for task in snapshot.tasks.values() {
        let removed = !snapshot.services.contains_key(&task.service_id);
        if (removed || task.desired_state == TaskState::Remove) && is_gone(snapshot, task) {
            forget(task, "it was removed", &mut plan);
        } else if removed && task.desired_state != TaskState::Remove {
            plan.reasons.push(format!("task {} goes: its service was removed", task.id));
            plan.actions.push(stopped(now, task, TaskState::Remove));
        }
    }
    let limit = snapshot.cluster.as_ref().map_or(HISTORY_LIMIT, |cluster| cluster.task_history_limit);
    for service in snapshot.services.keys() {
        for tasks in slots::of(snapshot, service).values() {
            forget_history(snapshot, tasks, limit, &mut plan);
        }
    }
    forget_specs(snapshot, &mut plan);
    plan
}

fn forget(task: &Stored<Task>, reason: &str, plan: &mut Plan) {
    plan.reasons.push(format!("task {} in slot {} is forgotten: {reason}", task.id, task.slot));
    plan.actions.push(Action::DeleteTask { id: task.id.clone(), expected: task.mod_revision });
}

/// Whether no node holds anything of a task.
fn is_gone(snapshot: &ClusterSnapshot, task: &Task) -> bool {
    snapshot.state_of(task).is_terminal()
        || task.node_id.as_ref().is_none_or(|node| !snapshot.nodes.contains_key(node))
}

/// Deletes a slot's oldest ended tasks, except for `limit` of them and those that its restart
/// policy counts.
fn forget_history(snapshot: &ClusterSnapshot, tasks: &SlotTasks<'_>, limit: u64, plan: &mut Plan) {
    let ended = tasks.iter().filter(|task| !slots::is_wanted(task) && is_gone(snapshot, task));
    let counted = restart_policy::attempts_counted(snapshot, tasks.first().map(|task| &task.value));
    let keep = limit.max(counted).max(1);
    let mut attempts = 0;
    for (position, task) in (0_u64..).zip(ended) {
        let is_attempt = history::ended_by_itself(snapshot, task);
        attempts += u64::from(is_attempt);
        if position >= keep && !(is_attempt && attempts <= counted) {
            forget(task, "its slot has newer history", plan);
        }
    }
}

/// Deletes spec versions that no task was made from and that no service may return to.
fn forget_specs(snapshot: &ClusterSnapshot, plan: &mut Plan) {
    let mut kept: BTreeMap<&ServiceId, BTreeSet<u64>> = BTreeMap::new();
    let forgotten: BTreeSet<TaskId> = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::DeleteTask { id, .. } => Some(id.clone()),
            _ => None,
        })
        .collect();
    for task in snapshot.tasks.values().filter(|task| !forgotten.contains(&task.id)) {
        kept.entry(&task.service_id).or_default().insert(task.spec_version);
    }
    for service in snapshot.services.values() {
        let versions = kept.entry(&service.id).or_default();
        versions.insert(service.spec_version);
        versions.extend(service.previous_spec_version);
    }
    for (service, version) in snapshot.specs.keys() {
        if !kept.get(service).is_some_and(|versions| versions.contains(version)) {
            plan.actions.push(Action::DeleteSpec { service: service.clone(), version: *version });
        }
    }
}
