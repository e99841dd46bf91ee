//! Replicated services: as many filled slots as the spec asks for.
//!
//! It decides from the number of replicas and from what fills each slot. A slot counts as filled
//! while a task in it is wanted, whatever the task's observed state, and also when its last task
//! ended and the restart policy doesn't restart it: a service of `--restart-condition none` whose
//! tasks are complete must not begin again. A task's health plays no part, so a failing task never
//! makes it create another beside it.
//!
//! Too few filled slots: the lowest vacant numbers are filled, with the delay that their history
//! demands. Too many: it drops first those whose task doesn't run, then those on nodes that have
//! most of the service's tasks, then high numbers. This keeps the spread over nodes, and keeps the
//! tasks that serve.
//!
//! It can't see connections or load, so the task that it drops may be the busiest one. Its flows
//! drain like any other's, and the alternative, to weigh live load, would make one scale-down
//! differ from the next for reasons that no record explains.
//!
//! Invariants: vacant numbers are filled from the lowest; of too many slots, those that don't run
//! are dropped first, then those on crowded nodes, then high numbers; a dropped slot's tasks, its
//! history included, get desired `remove`.
//!
//! Left to others: a task's end (`restart`), its spec (`updater`), its node (`scheduler`).

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use mesh_state::service::Service;
use mesh_state::task::{Slot, TaskState};
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::Plan;
use crate::slots::create::{Start, TaskMaker, stopped};
use crate::slots::outdated::OutdatedTasks;
use crate::slots::{self, Filling, SlotTasks};

/// Fills and drops the slots of all replicated services.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut maker = TaskMaker::new(now, snapshot, ids);
    for stored in snapshot.services.values() {
        if let Some(replicas) = stored.spec.mode.replicas() {
            plan_service(now, snapshot, &stored.value, replicas, &mut maker, &mut plan);
        }
    }
    maker.finish(&mut plan);
    plan
}

fn plan_service(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    service: &Service,
    replicas: u64,
    maker: &mut TaskMaker<'_>,
    plan: &mut Plan,
) {
    let slots = slots::of(snapshot, &service.id);
    let mut filled: Vec<(u64, &SlotTasks<'_>)> = Vec::new();
    let mut vacant: BTreeMap<u64, Start> = BTreeMap::new();
    for (slot, tasks) in &slots {
        let Slot::Number(number) = slot else { continue };
        match slots::filling(now, snapshot, service, tasks) {
            Filling::Wanted | Filling::Ended => filled.push((*number, tasks)),
            Filling::Vacant(start) => drop(vacant.insert(*number, start)),
        }
    }
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    if filled.len() > wanted {
        let dropped = least_useful(snapshot, &filled, filled.len() - wanted);
        plan.reasons.push(format!(
            "service {} has {} tasks and wants {replicas}: slots {} are dropped",
            service.spec.name,
            filled.len(),
            listed(&dropped)
        ));
        drop_slots(now, &slots, &dropped, plan);
    } else {
        let outdated = OutdatedTasks::new(snapshot, service);
        let surplus = filled.iter().flat_map(|(_, tasks)| slots::surplus(snapshot, &outdated, tasks));
        plan.actions.extend(surplus.map(|task| stopped(now, task, TaskState::Shutdown)));
    }
    let mut missing = wanted.saturating_sub(filled.len());
    if missing > 0 {
        plan.reasons.push(format!(
            "service {} has {} tasks and wants {replicas}",
            service.spec.name,
            filled.len()
        ));
    }
    let taken: std::collections::BTreeSet<u64> = filled.iter().map(|(number, _)| *number).collect();
    let mut number = 0;
    while missing > 0 {
        number += 1;
        if !taken.contains(&number) {
            let start = vacant.remove(&number).unwrap_or(Start::Now);
            maker.create(plan, service, &Slot::Number(number), start);
            missing -= 1;
        }
    }
    // A vacant slot that stays vacant belongs to the service no more.
    let left: Vec<u64> = vacant.into_keys().collect();
    drop_slots(now, &slots, &left, plan);
}

/// The `count` slots to drop when a service is scaled down.
fn least_useful(snapshot: &ClusterSnapshot, filled: &[(u64, &SlotTasks<'_>)], count: usize) -> Vec<u64> {
    let mut by_state: Vec<(bool, u64, Option<&NodeId>)> = filled
        .iter()
        .map(|(number, tasks)| {
            let running = tasks
                .iter()
                .find(|task| slots::is_wanted(task) && snapshot.state_of(task) == TaskState::Running);
            let node = running.or(tasks.first()).and_then(|task| task.node_id.as_ref());
            (running.is_none(), *number, node)
        })
        .collect();
    by_state.sort_unstable();
    // The n-th task of the service on its node is dropped before any (n-1)-th.
    let mut on_node: BTreeMap<Option<&NodeId>, u64> = BTreeMap::new();
    let mut order: Vec<(bool, u64, u64)> = by_state
        .into_iter()
        .map(|(idle, number, node)| {
            let nth = on_node.entry(node).or_default();
            *nth += 1;
            (idle, *nth, number)
        })
        .collect();
    order.sort_unstable();
    let mut dropped: Vec<u64> = order.into_iter().rev().take(count).map(|(_, _, number)| number).collect();
    dropped.sort_unstable();
    dropped
}

fn drop_slots(now: Timestamp, slots: &BTreeMap<&Slot, SlotTasks<'_>>, numbers: &[u64], plan: &mut Plan) {
    for number in numbers {
        for task in slots.get(&Slot::Number(*number)).into_iter().flatten() {
            plan.actions.push(stopped(now, task, TaskState::Remove));
        }
    }
}

fn listed(numbers: &[u64]) -> String {
    let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
    texts.join(", ")
}
