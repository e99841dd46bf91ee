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
//! A task on networks gets its addresses with its node, so that it never has one without the other.
//! One that finds a network used up waits, and says which; no node would be better.
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
use std::net::Ipv4Addr;

use mesh_state::Timestamp;
use mesh_state::ids::{NodeId, ServiceId};
use mesh_state::spec::GenericResource;
use mesh_state::task::{Slot, Task, TaskState, TaskStatus};
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};
use crate::slots;
use crate::slots::addresses::{Addresses, NoAddress};
use explain::Refusals;
use needs::Needs;
use place::Placement;
use usage::NodeUsages;

/// Gives nodes to the tasks that wait for one, and addresses on their networks with them.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut fixed: Vec<&Stored<Task>> = Vec::new();
    let mut groups: BTreeMap<(&ServiceId, u64), Vec<&Stored<Task>>> = BTreeMap::new();
    for task in snapshot.tasks.values().filter(|task| waits(task)) {
        match task.slot {
            Slot::Node(_) => fixed.push(task),
            Slot::Number(_) => groups.entry((&task.service_id, task.spec_version)).or_default().push(task),
        }
    }
    let mut pass = Pass { now, snapshot, addresses: Addresses::new(snapshot), plan: Plan::default() };
    if fixed.is_empty() && groups.is_empty() {
        return pass.plan;
    }
    let mut usages = NodeUsages::new(now, snapshot);
    for task in fixed {
        pass.place_fixed(task, &mut usages);
    }
    // Whoever waits longest chooses first.
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|tasks| tasks.iter().map(|task| task.create_revision).min());
    for tasks in groups {
        pass.place_group(tasks, &mut usages);
    }
    pass.plan
}

fn waits(task: &Task) -> bool {
    task.node_id.is_none() && slots::is_wanted(task) && !task.leader_status.state.is_terminal()
}

/// One pass over the tasks that wait.
struct Pass<'a> {
    now: Timestamp,
    snapshot: &'a ClusterSnapshot,
    addresses: Addresses<'a>,
    plan: Plan,
}

impl<'a> Pass<'a> {
    /// Places a task whose slot is a node: there or nowhere.
    fn place_fixed(&mut self, task: &'a Stored<Task>, usages: &mut NodeUsages<'a>) {
        let Slot::Node(id) = &task.slot else { return };
        let Some(spec) = self.snapshot.spec_of(task) else { return };
        let needs = Needs::new(&task.service_id, spec);
        let mut refusals = Refusals::default();
        if let Some(usage) = usages.of(id) {
            match filter::refusal(&needs, usage) {
                None => {
                    let taken = self.addresses.for_task(&task.attachments);
                    let given = taken.and_then(|given| self.settle(task, &usage.node.id, given));
                    match given {
                        Ok(given) => {
                            let generic = usage.take(&needs);
                            self.assign(task, &usage.node.id, generic, &given);
                        }
                        Err(error) => self.refuse(task, error.to_string()),
                    }
                    return;
                }
                Some(refusal) => refusals.add(refusal),
            }
        }
        self.refuse(task, refusals.to_string());
    }

    /// Places tasks that are alike, the longest waiting first.
    fn place_group(&mut self, mut tasks: Vec<&'a Stored<Task>>, usages: &mut NodeUsages<'a>) {
        tasks.sort_by_key(|task| (task.create_revision, &task.slot));
        let Some(&first) = tasks.first() else { return };
        let Some(spec) = self.snapshot.spec_of(first) else {
            self.plan.reasons.push(format!(
                "tasks of service {} wait: version {} of its spec is missing",
                first.service_id, first.spec_version
            ));
            return;
        };
        let needs = Needs::new(&first.service_id, spec);
        let mut placement = Placement::new(&needs, first.spec_version, spec, usages);
        let mut unplaced = Vec::new();
        for task in tasks {
            // Addresses first: a node must not count a task that has none.
            let given = match self.addresses.for_task(&task.attachments) {
                Ok(given) => given,
                Err(error) => {
                    self.refuse(task, error.to_string());
                    continue;
                }
            };
            let Some((node, generic)) = placement.place() else {
                self.addresses.give_back(&task.attachments, &given);
                unplaced.push(task);
                continue;
            };
            match self.settle(task, node, given) {
                Ok(given) => self.assign(task, node, generic, &given),
                Err(error) => self.refuse(task, error.to_string()),
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
            self.refuse(task, refusals.to_string());
        }
    }

    /// A task's addresses, if its node can have its own on each of the task's networks.
    fn settle(
        &mut self,
        task: &Task,
        node: &'a NodeId,
        given: Vec<Ipv4Addr>,
    ) -> Result<Vec<Ipv4Addr>, NoAddress> {
        match self.addresses.owe(node, &task.attachments) {
            Ok(()) => Ok(given),
            Err(error) => {
                self.addresses.give_back(&task.attachments, &given);
                Err(error)
            }
        }
    }

    fn assign(
        &mut self,
        task: &Stored<Task>,
        node: &NodeId,
        generic: Vec<GenericResource>,
        addresses: &[Ipv4Addr],
    ) {
        let name = self.snapshot.nodes.get(node).map_or("", |node| node.description.hostname.as_str());
        self.plan.reasons.push(format!("task {} in slot {} goes to node {name}", task.id, task.slot));
        let mut value = task.value.clone();
        value.node_id = Some(node.clone());
        value.generic_resources = generic;
        for (attachment, address) in value.attachments.iter_mut().zip(addresses) {
            attachment.address = Some(*address);
        }
        value.leader_status = TaskStatus {
            state: TaskState::Assigned,
            timestamp: self.now,
            message: "scheduler assigned task to node".to_owned(),
            ..TaskStatus::default()
        };
        self.plan.actions.push(Action::UpdateTask { task: value, expected: task.mod_revision });
    }

    /// Writes why a task waits, unless it says so already.
    fn refuse(&mut self, task: &Stored<Task>, err: String) {
        if task.leader_status.err == err {
            return;
        }
        self.plan.reasons.push(format!("task {} in slot {} waits: {err}", task.id, task.slot));
        let mut value = task.value.clone();
        value.leader_status.err = err;
        value.leader_status.timestamp = self.now;
        self.plan.actions.push(Action::UpdateTask { task: value, expected: task.mod_revision });
    }
}

#[cfg(test)]
mod tests;
