//! Global services: one task on every node that is up, active and meets the constraints.
//!
//! It decides from the nodes of the snapshot and from the tasks in each node's slot. A slot is
//! named by its node, so there is nothing to choose: a node that may run the task and has none gets
//! one, a node that may not run it (drained, or its constraints fail) loses it, and a slot whose
//! node is no member any more is dropped.
//!
//! It does not look at resources. A task for a node that is full is made all the same and waits
//! there with the scheduler's reason, so that a user sees which node lacks what. Without the task
//! there would be nothing to show.
//!
//! It can't tell a node that is slow from one that is dead. A silent node keeps its task and gets
//! no new one until the liveness planner has judged it: a task made for it could not be sent to it
//! anyway. A node that joins while a plan is committed gets its task in the next pass, which its
//! own record wakes.
//!
//! Invariants: a paused node keeps its task and gets no new one; a node that may not have the task
//! loses it; a slot of a node that is no member any more is removed with its history.
//!
//! Left to others: replacing a task that ended, and stopping those on nodes that are down or
//! drained (`restart`).

use mesh_state::Timestamp;
use mesh_state::node::Availability;
use mesh_state::service::Service;
use mesh_state::task::{Slot, TaskState};
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::Plan;
use crate::slots::create::{TaskMaker, stopped};
use crate::slots::eligible::{Suits, takes_new};
use crate::slots::outdated::OutdatedTasks;
use crate::slots::{self, Filling};

/// Gives every eligible node its task of every global service.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut maker = TaskMaker::new(now, snapshot, ids);
    for stored in snapshot.services.values().filter(|stored| slots::is_global(&stored.spec)) {
        plan_service(now, snapshot, &stored.value, &mut maker, &mut plan);
    }
    maker.finish(&mut plan);
    plan
}

fn plan_service(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    service: &Service,
    maker: &mut TaskMaker<'_>,
    plan: &mut Plan,
) {
    let suits = Suits::new(&service.spec.task_template);
    let outdated = OutdatedTasks::new(snapshot, service);
    let slots = slots::of(snapshot, &service.id);
    for (slot, tasks) in &slots {
        let node = match slot {
            Slot::Node(id) => snapshot.nodes.get(id),
            Slot::Number(_) => None,
        };
        let Some(node) = node else {
            plan.reasons.push(format!("{} is dropped: its node is gone", service.task_name(slot)));
            plan.actions.extend(tasks.iter().map(|task| stopped(now, task, TaskState::Remove)));
            continue;
        };
        if node.spec.availability == Availability::Drain || !suits.node(node) {
            for task in tasks.iter().filter(|task| slots::is_wanted(task)) {
                plan.reasons.push(format!("{} stops: its node may not run it", service.task_name(slot)));
                plan.actions.push(stopped(now, task, TaskState::Shutdown));
            }
        } else {
            let surplus = slots::surplus(snapshot, &outdated, tasks);
            plan.actions.extend(surplus.into_iter().map(|task| stopped(now, task, TaskState::Shutdown)));
        }
    }
    for node in snapshot.nodes.values().filter(|node| takes_new(snapshot, node, &suits)) {
        let slot = Slot::Node(node.id.clone());
        let tasks = slots.get(&slot).map(Vec::as_slice).unwrap_or_default();
        if let Filling::Vacant(start) = slots::filling(now, snapshot, service, tasks) {
            plan.reasons.push(format!("{} has no task", service.task_name(&slot)));
            maker.create(plan, service, &slot, start);
        }
    }
}
