//! Gives tasks their nodes, and their addresses on networks.
//!
//! It decides from the specs of tasks and from what nodes report: state, reservations already held,
//! labels, plugins, platform, host ports. A task is placed on a node that passes all filters
//! ([`filter`]). Among those, branches of the spread preferences fill evenly, and within a branch
//! the lowest score wins ([`score`]). The score compares in this order:
//! 1. *Recent failures* of this version of the spec on the node, if there were five in five
//!    minutes. A broken node (full disk, bad kernel) ends tasks fast, so it always has the fewest
//!    tasks; without this rule it would attract every replacement.
//! 2. *Tasks of this service* on the node, so that the loss of a node takes as few tasks of one
//!    service as possible.
//! 3. *Tasks of all services* on the node, so that nodes fill evenly.
//!
//! It can't see what tasks really use. Reservations are promises: a service that reserves nothing
//! counts as a task and nothing more. Measured use would be the value of one moment, wrong a minute
//! later, and two equal passes would place differently. It can't see which node has the image
//! either; a pull costs seconds once, and a placement lasts. It is greedy: it places tasks one
//! after the other, the longest waiting first, and moves none to make room. So a big task may wait
//! although a better packing had a place for it. The message on the task says which filters refused
//! how many nodes.
//!
//! A task on networks gets its addresses together with its node, so it never has one without the
//! other. If a network has no address left, the task waits and names the network, as no other node
//! would help.
//!
//! Two tasks of one pass never take the same resources, as each placement is counted before the
//! next one. Two passes don't either: the driver starts the second only when its snapshot holds the
//! writes of the first.
//!
//! Invariants: a task gets a node once and keeps it; it gets one that passes every filter; a task
//! without a node says why.
//!
//! Left to others: making and stopping tasks. The enforcer stops tasks on nodes that no longer fit,
//! and the restart planner replaces tasks of nodes that go down.

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

/// Gives waiting tasks their nodes, and with them their addresses on networks.
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
    // The service whose task waits longest is placed first.
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

/// One pass over the waiting tasks.
struct Pass<'a> {
    now: Timestamp,
    snapshot: &'a ClusterSnapshot,
    addresses: Addresses<'a>,
    plan: Plan,
}

impl<'a> Pass<'a> {
    /// Places a task of a global service, whose slot is a node: on that node or on none.
    fn place_fixed(&mut self, task: &'a Stored<Task>, usages: &mut NodeUsages<'a>) {
        let Slot::Node(id) = &task.slot else { return };
        let Some(spec) = self.snapshot.spec_of(task) else { return };
        let needs = Needs::new(self.snapshot, &task.service_id, spec);
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

    /// Places tasks of one service and spec version, the longest waiting first.
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
        let needs = Needs::new(self.snapshot, &first.service_id, spec);
        let mut placement = Placement::new(&needs, first.spec_version, spec, usages);
        let mut unplaced = Vec::new();
        for task in tasks {
            // Addresses come first: the node's usage must not count a task that gets none.
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

    /// Keeps a task's addresses if its node has, or can get, an address on each of the networks;
    /// else frees them.
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

    /// Writes why a task waits, unless its status says so already.
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
