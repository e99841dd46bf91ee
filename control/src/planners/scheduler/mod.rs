//! Where tasks run.
//!
//! It decides from the specs of tasks and from what nodes report of themselves: state, reservations
//! already held, labels, plugins, platform, host ports. A task is placed on a node that passes all
//! filters ([`filter`]). Among those, branches of the spread preferences fill evenly, and within a
//! branch the lowest score wins ([`score`]), in this order:
//!
//! 1. *Recent failures* of this version of the spec on the node, if there were five in five
//!    minutes. A broken node (full disk, bad kernel) ends tasks fast, so it always has the fewest
//!    tasks; without this rule it would attract every replacement.
//! 2. *Tasks of this service* on the node: a node's loss then takes as few tasks of one service as
//!    can be.
//! 3. *Tasks of all services* on the node, so that nodes fill evenly.
//!
//! It can't see what tasks really use. Reservations are promises: a service that reserves nothing
//! counts as a task and nothing more. Measured use would be a moment's value at the time of
//! placing, wrong a minute later, and would make two equal passes differ. It can't see which node
//! has the image either; a pull costs seconds once, and a placement lasts. It is greedy: tasks are
//! placed one after the other, those that wait longest first, and none is moved to make room. So a
//! big task may wait although a better packing had a place for it. The message on the task says
//! which filters refused how many nodes.
//!
//! Two tasks of one pass never take the same room, as each placement is counted before the next
//! one. Two passes don't either: the driver waits until its snapshot has the first before the
//! second.
//!
//! Invariants: a task gets a node once and keeps it; it gets one that passes every filter; a task
//! that finds none says why.
//!
//! Left to others: making and stopping tasks. A node that stops fitting is the enforcer's, a node
//! that goes down the restart planner's.

pub mod explain;
pub mod filter;
pub mod generic;
pub mod needs;
pub mod place;
pub mod score;
pub mod usage;

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::{NodeId, ServiceId};
use mesh_state::spec::GenericResource;
use mesh_state::task::{Slot, Task, TaskState, TaskStatus};
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};
use crate::slots;
use explain::Refusals;
use needs::Needs;
use place::Placement;
use usage::NodeUsages;

/// Gives nodes to the tasks that wait for one.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut fixed: Vec<&Stored<Task>> = Vec::new();
    let mut groups: BTreeMap<(&ServiceId, u64), Vec<&Stored<Task>>> = BTreeMap::new();
    for task in snapshot.tasks.values().filter(|task| waits(task)) {
        match task.slot {
            Slot::Node(_) => fixed.push(task),
            Slot::Number(_) => groups.entry((&task.service_id, task.spec_version)).or_default().push(task),
        }
    }
    if fixed.is_empty() && groups.is_empty() {
        return plan;
    }
    let mut usages = NodeUsages::new(now, snapshot);
    for task in fixed {
        place_fixed(now, snapshot, task, &mut usages, &mut plan);
    }
    // Whoever waits longest chooses first.
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|tasks| tasks.iter().map(|task| task.create_revision).min());
    for tasks in groups {
        place_group(now, snapshot, tasks, &mut usages, &mut plan);
    }
    plan
}

fn waits(task: &Task) -> bool {
    task.node_id.is_none() && slots::is_wanted(task) && !task.leader_status.state.is_terminal()
}

/// Places a task whose slot is a node: there or nowhere.
fn place_fixed<'a>(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    task: &'a Stored<Task>,
    usages: &mut NodeUsages<'a>,
    plan: &mut Plan,
) {
    let Slot::Node(id) = &task.slot else { return };
    let Some(spec) = snapshot.spec_of(task) else { return };
    let needs = Needs::new(&task.service_id, spec);
    let mut refusals = Refusals::default();
    if let Some(usage) = usages.of(id) {
        match filter::refusal(&needs, usage) {
            None => {
                let generic = usage.take(&needs);
                assign(now, snapshot, task, usage.node.id.clone(), generic, plan);
                return;
            }
            Some(refusal) => refusals.add(refusal),
        }
    }
    refuse(now, task, &refusals, plan);
}

/// Places tasks that are alike, the longest waiting first.
fn place_group<'a>(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    mut tasks: Vec<&'a Stored<Task>>,
    usages: &mut NodeUsages<'a>,
    plan: &mut Plan,
) {
    tasks.sort_by_key(|task| (task.create_revision, &task.slot));
    let Some(&first) = tasks.first() else { return };
    let Some(spec) = snapshot.spec_of(first) else {
        plan.reasons.push(format!(
            "tasks of service {} wait: version {} of its spec is missing",
            first.service_id, first.spec_version
        ));
        return;
    };
    let needs = Needs::new(&first.service_id, spec);
    let mut placement = Placement::new(&needs, first.spec_version, spec, usages);
    let mut unplaced = Vec::new();
    for task in tasks {
        match placement.place() {
            Some((node, generic)) => assign(now, snapshot, task, node, generic, plan),
            None => unplaced.push(task),
        }
    }
    if unplaced.is_empty() {
        return;
    }
    let mut refusals = Refusals::default();
    usages
        .iter()
        .filter_map(|usage| filter::refusal(&needs, usage))
        .for_each(|refusal| refusals.add(refusal));
    for task in unplaced {
        refuse(now, task, &refusals, plan);
    }
}

fn assign(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    task: &Stored<Task>,
    node: NodeId,
    generic: Vec<GenericResource>,
    plan: &mut Plan,
) {
    let name = snapshot.nodes.get(&node).map_or("", |node| node.description.hostname.as_str());
    plan.reasons.push(format!("task {} in slot {} goes to node {name}", task.id, task.slot));
    let mut value = task.value.clone();
    value.node_id = Some(node);
    value.generic_resources = generic;
    value.leader_status = TaskStatus {
        state: TaskState::Assigned,
        timestamp: now,
        message: "scheduler assigned task to node".to_owned(),
        ..TaskStatus::default()
    };
    plan.actions.push(Action::UpdateTask { task: value, expected: task.mod_revision });
}

/// Writes why a task waits, unless it says so already.
fn refuse(now: Timestamp, task: &Stored<Task>, refusals: &Refusals, plan: &mut Plan) {
    let err = refusals.to_string();
    if task.leader_status.err == err {
        return;
    }
    plan.reasons.push(format!("task {} in slot {} waits: {err}", task.id, task.slot));
    let mut value = task.value.clone();
    value.leader_status.err = err;
    value.leader_status.timestamp = now;
    plan.actions.push(Action::UpdateTask { task: value, expected: task.mod_revision });
}

#[cfg(test)]
mod tests;
