//! Tests of placement: each filter by itself, the spread, and each choice in random clusters.

mod networks;

use std::collections::BTreeMap;

use mesh_state::ids::NodeId;
use mesh_state::node::{Availability, Node, NodeState};
use mesh_state::service::Service;
use mesh_state::spec::{GenericResource, PlacementPreference, PublishMode, ResourceReservations, SpreadOver};
use mesh_state::task::{Task, TaskState};
use proptest::prelude::*;

use super::plan;
use crate::fixtures::{World, global, ingress, node, service, task};
use crate::plan::Plan;
use crate::planners::global as global_orchestrator;

fn reserve(service: &mut Service, cpus: i64, gibibytes: i64) {
    let resources = service.spec.task_template.resources.get_or_insert_default();
    resources.reservations = Some(ResourceReservations {
        nano_cpus: Some(cpus * 1_000_000_000),
        memory_bytes: Some(gibibytes << 30),
        ..ResourceReservations::default()
    });
}

fn constrain(service: &mut Service, constraint: &str) {
    service.spec.task_template.placement.get_or_insert_default().constraints.push(constraint.to_owned());
}

fn with_json(service: &mut Service, template: &str) {
    service.spec.task_template = serde_json::from_str(template).unwrap();
}

/// Adds waiting tasks in the slots `from..=to` of a service.
fn wait(world: &mut World, service: &str, from: u64, to: u64) {
    for slot in from..=to {
        world.put_task(&task(&format!("{service}-{slot:03}"), service, slot));
    }
}

fn node_of(world: &World, id: &str) -> Option<String> {
    world.snapshot.tasks[&id.into()].node_id.as_ref().map(ToString::to_string)
}

fn counts(world: &World, service: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for task in world.wanted(service) {
        *counts.entry(task.node_id.map_or_else(String::new, |node| node.to_string())).or_default() += 1;
    }
    counts
}

/// The error of a waiting task of a service changed by `change`, on one node changed by `shape`
/// that runs task `t0` of service `other`.
fn refusal(shape: impl FnOnce(&mut Node), change: impl FnOnce(&mut Service)) -> String {
    let mut world = World::new();
    let mut member = node("a");
    shape(&mut member);
    world.add_node(&member);
    let mut other = service("other", 1);
    let mut port = ingress(9000, 9000);
    port.publish_mode = PublishMode::Host;
    other.spec.endpoint_spec.get_or_insert_default().ports = vec![port];
    reserve(&mut other, 6, 12);
    world.put_service(&other);
    let mut held = task("t0", "other", 1);
    held.node_id = Some("a".into());
    world.put_task(&held);
    world.report(&held.id, TaskState::Running);
    let mut web = service("web", 1);
    change(&mut web);
    world.put_service(&web);
    wait(&mut world, "web", 1, 1);
    world.run(plan);
    assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    let waiting = &world.snapshot.tasks[&"web-001".into()];
    assert_eq!(
        waiting.node_id.is_none(),
        !waiting.leader_status.err.is_empty(),
        "placed, or waits with an error"
    );
    waiting.leader_status.err.clone()
}

#[test]
fn each_filter_explains_its_refusal() {
    let drained = |node: &mut Node| node.spec.availability = Availability::Drain;
    let paused = |node: &mut Node| node.spec.availability = Availability::Pause;
    let any = |_: &mut Node| {};
    let host_port = |service: &mut Service| {
        let mut port = ingress(9000, 80);
        port.publish_mode = PublishMode::Host;
        service.spec.endpoint_spec.get_or_insert_default().ports = vec![port];
    };
    let volume = r#"{"ContainerSpec":{"Mounts":[{"VolumeOptions":{"DriverConfig":{"Name":"nfs"}}}]}}"#;
    let local = r#"{"ContainerSpec":{"Mounts":[{"VolumeOptions":{"DriverConfig":{"Name":"local"}}}]}}"#;
    let arm = r#"{"Placement":{"Platforms":[{"Architecture":"arm64","OS":"linux"}]}}"#;
    let generic = r#"{"Resources":{"Reservations":{"GenericResources":[{"DiscreteResourceSpec":{"Kind":"gpu","Value":2}}]}}}"#;
    let gpus = |count: i64| {
        move |node: &mut Node| {
            node.description.generic_resources = vec![GenericResource::discrete("gpu", count)];
        }
    };
    let log = r#"{"LogDriver":{"Name":"splunk"}}"#;
    let logs_known = |node: &mut Node| node.description.plugins = vec![("Log".into(), "json-file".into())];

    assert_eq!(refusal(any, |_| {}), "");
    assert_eq!(refusal(drained, |_| {}), "no suitable node (1 node not available for new tasks)");
    assert_eq!(refusal(paused, |_| {}), "no suitable node (1 node not available for new tasks)");
    assert_eq!(refusal(any, |web| reserve(web, 2, 4)), "", "exactly what is free");
    assert_eq!(refusal(any, |web| reserve(web, 3, 4)), "no suitable node (insufficient resources on 1 node)");
    assert_eq!(refusal(any, |web| reserve(web, 2, 5)), "no suitable node (insufficient resources on 1 node)");
    assert_eq!(
        refusal(any, |web| with_json(web, generic)),
        "no suitable node (insufficient resources on 1 node)"
    );
    assert_eq!(
        refusal(gpus(1), |web| with_json(web, generic)),
        "no suitable node (insufficient resources on 1 node)"
    );
    assert_eq!(refusal(gpus(2), |web| with_json(web, generic)), "");
    assert_eq!(refusal(any, |web| with_json(web, volume)), "no suitable node (missing plugin on 1 node)");
    assert_eq!(refusal(any, |web| with_json(web, local)), "");
    assert_eq!(refusal(any, |web| with_json(web, log)), "", "the node doesn't tell its log drivers");
    assert_eq!(refusal(logs_known, |web| with_json(web, log)), "no suitable node (missing plugin on 1 node)");
    assert_eq!(
        refusal(any, |web| constrain(web, "node.role==manager")),
        "no suitable node (scheduling constraints not satisfied on 1 node)"
    );
    assert_eq!(refusal(any, |web| with_json(web, arm)), "no suitable node (unsupported platform on 1 node)");
    assert_eq!(refusal(any, host_port), "no suitable node (host-mode port already in use on 1 node)");
}

#[test]
fn max_replicas_a_node_bounds_a_batch() {
    let mut world = World::with_nodes(["a", "b"]);
    let mut web = service("web", 5);
    web.spec.task_template.placement.get_or_insert_default().max_replicas = 2;
    world.put_service(&web);
    wait(&mut world, "web", 1, 5);
    world.run(plan);
    assert_eq!(counts(&world, "web"), BTreeMap::from([("a".into(), 2), ("b".into(), 2), (String::new(), 1)]));
    let waiting = world.wanted("web").into_iter().find(|task| task.node_id.is_none()).unwrap();
    assert_eq!(waiting.leader_status.err, "no suitable node (max replicas per node limit exceed)");
}

#[test]
fn a_placed_task_is_assigned_and_its_old_error_gone() {
    let mut world = World::new();
    world.put_service(&service("web", 1));
    wait(&mut world, "web", 1, 1);
    world.run(plan);
    assert_eq!(world.snapshot.tasks[&"web-001".into()].leader_status.err, "no suitable node");
    world.add_node(&node("a"));
    world.run(plan);
    let placed = &world.snapshot.tasks[&"web-001".into()];
    assert_eq!(placed.node_id, Some("a".into()));
    assert_eq!(placed.leader_status.state, TaskState::Assigned);
    assert_eq!(placed.leader_status.message, "scheduler assigned task to node");
    assert_eq!(placed.leader_status.err, "");
}

#[test]
fn silent_and_unheard_nodes_get_nothing() {
    let mut world = World::with_nodes(["a", "b"]);
    world.set_liveness(&"a".into(), NodeState::Silent);
    world.put_node(&node("c"));
    world.put_service(&service("web", 4));
    wait(&mut world, "web", 1, 4);
    world.run(plan);
    assert_eq!(counts(&world, "web"), BTreeMap::from([("b".into(), 4)]));
}

#[test]
fn the_service_spreads_before_the_cluster_does() {
    let mut world = World::with_nodes(["a", "b", "c"]);
    world.put_service(&service("other", 9));
    for slot in 1..=9 {
        let mut held = task(&format!("o{slot}"), "other", slot);
        held.node_id = Some(if slot <= 6 { "a" } else { "b" }.into());
        world.put_task(&held);
    }
    world.put_service(&service("web", 4));
    wait(&mut world, "web", 1, 4);
    world.run(plan);
    // One on each node first, then the emptiest one gets the second.
    assert_eq!(counts(&world, "web"), BTreeMap::from([("a".into(), 1), ("b".into(), 1), ("c".into(), 2)]));
}

#[test]
fn a_node_that_failed_five_times_comes_last_for_five_minutes() {
    let mut world = World::with_nodes(["a", "b"]);
    world.put_service(&service("web", 2));
    for number in 0..5 {
        let mut failed = task(&format!("f{number}"), "web", 1);
        failed.desired_state = TaskState::Shutdown;
        failed.node_id = Some("a".into());
        world.put_task(&failed);
        world.report(&failed.id, TaskState::Failed);
    }
    wait(&mut world, "web", 1, 2);
    let mut later = world.clone();
    world.run(plan);
    assert_eq!(counts(&world, "web"), BTreeMap::from([("b".into(), 2)]));
    later.pass(301);
    later.run(plan);
    assert_eq!(counts(&later, "web"), BTreeMap::from([("a".into(), 1), ("b".into(), 1)]));
}

#[test]
fn preferences_split_evenly_over_zones_then_racks() {
    let mut world = World::new();
    // Zone x has one node, zone y three, of which two share a rack.
    for (id, zone, rack) in [("a", "x", "1"), ("b", "y", "1"), ("c", "y", "1"), ("d", "y", "2")] {
        let mut member = node(id);
        member.spec.labels.insert("zone".to_owned(), zone.to_owned());
        member.spec.labels.insert("rack".to_owned(), rack.to_owned());
        world.add_node(&member);
    }
    let over = |label: &str| PlacementPreference {
        spread: Some(SpreadOver { spread_descriptor: format!("node.labels.{label}") }),
        ..PlacementPreference::default()
    };
    let mut web = service("web", 16);
    web.spec.task_template.placement.get_or_insert_default().preferences = vec![over("zone"), over("rack")];
    world.put_service(&web);
    wait(&mut world, "web", 1, 16);
    world.run(plan);
    let expected = [("a", 8), ("b", 2), ("c", 2), ("d", 4)].map(|(id, count)| (id.to_owned(), count));
    assert_eq!(counts(&world, "web"), BTreeMap::from(expected));
}

#[test]
fn a_full_branch_leaves_its_share_to_the_others() {
    let mut world = World::new();
    for (id, zone, cpus) in [("a", "x", 2), ("b", "y", 8)] {
        let mut member = node(id);
        member.spec.labels.insert("zone".to_owned(), zone.to_owned());
        member.description.nano_cpus = cpus * 1_000_000_000;
        world.add_node(&member);
    }
    let mut web = service("web", 8);
    reserve(&mut web, 1, 0);
    web.spec.task_template.placement.get_or_insert_default().preferences = vec![PlacementPreference {
        spread: Some(SpreadOver { spread_descriptor: "node.labels.zone".to_owned() }),
        ..PlacementPreference::default()
    }];
    world.put_service(&web);
    wait(&mut world, "web", 1, 8);
    world.run(plan);
    assert_eq!(counts(&world, "web"), BTreeMap::from([("a".into(), 2), ("b".into(), 6)]));
}

#[test]
fn a_global_task_goes_to_its_node_or_waits() {
    let mut world = World::with_nodes(["a", "b"]);
    let mut agent = global("agent");
    reserve(&mut agent, 6, 0);
    world.update_node("b", |node| node.description.nano_cpus = 1_000_000_000);
    world.put_service(&agent);
    world.run(global_orchestrator::plan);
    world.run(plan);
    let tasks = world.wanted("agent");
    let on = |slot: &str| tasks.iter().find(|task| task.slot.to_string() == slot).unwrap();
    assert_eq!(on("a").node_id, Some("a".into()));
    assert_eq!(on("b").node_id, None);
    assert_eq!(on("b").leader_status.err, "no suitable node (insufficient resources on 1 node)");
}

/// A node of a random cluster: CPUs, whether it takes tasks, its zone, and how many tasks of the
/// service it has already.
type Shape = (i64, bool, bool, u8);

fn cluster(shapes: &[Shape], cpus: i64, max_replicas: u64) -> World {
    let mut world = World::new();
    let mut web = service("web", 0);
    reserve(&mut web, cpus, 0);
    constrain(&mut web, "node.labels.zone==in");
    web.spec.task_template.placement.get_or_insert_default().max_replicas = max_replicas;
    world.put_service(&web);
    for (index, (node_cpus, active, inside, held)) in shapes.iter().enumerate() {
        let mut member = node(&format!("n{index:02}"));
        member.description.nano_cpus = node_cpus * 1_000_000_000;
        member.spec.labels.insert("zone".to_owned(), if *inside { "in" } else { "out" }.to_owned());
        if !active {
            member.spec.availability = Availability::Pause;
        }
        world.add_node(&member);
        for number in 0..*held {
            let mut old = task(&format!("old-{index}-{number}"), "web", 1000 + u64::from(number));
            old.node_id = Some(member.id.clone());
            world.put_task(&old);
        }
    }
    world
}

/// The number of the service's tasks on a node, and whether it can take one more, counted from
/// scratch.
fn judge(world: &World, tasks: &[Task], id: &NodeId, cpus: i64, max_replicas: u64) -> (usize, bool) {
    let member = &world.snapshot.nodes[id];
    let held = tasks.iter().filter(|task| task.node_id.as_ref() == Some(id)).count();
    let count = i64::try_from(held).unwrap();
    let fits = member.spec.availability == Availability::Active
        && member.spec.labels["zone"] == "in"
        && (cpus == 0 || (count + 1) * cpus * 1_000_000_000 <= member.description.nano_cpus)
        && (max_replicas == 0 || u64::try_from(held).unwrap() < max_replicas);
    (held, fits)
}

proptest! {
    /// Replays each choice: the node fitted at that moment, and no node that fitted had fewer tasks
    /// of the service; a task waits only if no node fits.
    #[test]
    fn every_choice_is_right_by_itself(
        shapes in proptest::collection::vec((0..6_i64, any::<bool>(), any::<bool>(), 0..4_u8), 0..12),
        cpus in 0..3_i64,
        max_replicas in 0..4_u64,
        waiting in 1..30_u64,
    ) {
        let mut world = cluster(&shapes, cpus, max_replicas);
        let mut tasks = world.wanted("web");
        wait(&mut world, "web", 1, waiting);
        world.run(plan);
        for slot in 1..=waiting {
            let id = format!("web-{slot:03}");
            let best = world.snapshot.nodes.keys()
                .map(|node| judge(&world, &tasks, node, cpus, max_replicas))
                .filter(|(_, fits)| *fits)
                .map(|(held, _)| held)
                .min();
            if let Some(node) = node_of(&world, &id) {
                let (held, fits) = judge(&world, &tasks, &node.as_str().into(), cpus, max_replicas);
                prop_assert!(fits, "{id} went to {node}, which doesn't fit");
                prop_assert_eq!(Some(held), best, "{} went to {}", id, node);
            } else {
                prop_assert_eq!(best, None, "{} waits though a node fits", id);
            }
            tasks.push(world.snapshot.tasks[&id.as_str().into()].value.clone());
        }
        prop_assert_eq!(world.run(plan), Plan::default());
    }
}

#[test]
fn an_unfit_node_takes_no_tasks() {
    let unfit = |node: &mut Node| node.description.unfit = "it can't make its tasks' network".to_owned();
    assert_eq!(refusal(unfit, |_| {}), "no suitable node (1 node not available for new tasks)");
    let mut world = World::with_nodes(["a", "b"]);
    world.update_node("a", unfit);
    world.put_service(&service("web", 4));
    wait(&mut world, "web", 1, 4);
    world.run(plan);
    assert_eq!(counts(&world, "web"), [("b".to_owned(), 4)].into(), "they are placed elsewhere");
}
