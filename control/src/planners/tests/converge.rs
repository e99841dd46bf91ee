//! Tests that simulated clusters converge to their specs.

use mesh_state::node::Availability;
use mesh_state::spec::{FailureAction, ReplicatedMode, UpdateConfig, UpdateOrder};
use proptest::prelude::*;

use super::simulator::Simulation;
use crate::fixtures::{World, global, ingress, service};
use crate::slots::outdated::OutdatedTasks;

fn scale(world: &mut World, id: &str, replicas: u64) {
    world.update_service(id, |spec| {
        spec.mode.replicated = Some(ReplicatedMode { replicas: Some(replicas) });
    });
}

#[test]
fn sixty_tasks_spread_evenly_in_one_pass() {
    let mut world = World::with_nodes(["a", "b", "c"]);
    let mut web = service("web", 60);
    web.ports = vec![ingress(80, 80)];
    world.put_service(&web);
    let mut simulation = Simulation::new(world, 1);
    simulation.settle(60);
    simulation.check_settled("web", 60);
    let spread: Vec<usize> = simulation.spread("web").into_values().collect();
    assert_eq!(spread, [20, 20, 20]);
}

#[test]
fn a_dead_nodes_tasks_run_elsewhere_and_nothing_moves_back() {
    let mut world = World::with_nodes(["a", "b", "c"]);
    world.put_service(&service("web", 6));
    world.put_service(&global("agent"));
    let mut simulation = Simulation::new(world, 2);
    simulation.settle(60);
    simulation.kill("c");
    simulation.seconds(17);
    assert_eq!(simulation.running("web").len(), 6, "tasks were moved before the node was down");
    simulation.seconds(20);
    simulation.check_settled("web", 6);
    simulation.check_settled("agent", 2);
    assert_eq!(simulation.spread("web").into_values().collect::<Vec<_>>(), [3, 3]);
    simulation.revive("c");
    simulation.settle(60);
    simulation.check_settled("web", 6);
    simulation.check_settled("agent", 3);
    assert_eq!(simulation.spread("web").get("c"), None, "tasks moved back");
}

#[test]
fn drain_moves_tasks_and_pause_leaves_them() {
    let mut world = World::with_nodes(["a", "b"]);
    world.put_service(&service("web", 4));
    world.put_service(&global("agent"));
    let mut simulation = Simulation::new(world, 3);
    simulation.settle(60);
    simulation.world.update_node("a", |node| node.spec.availability = Availability::Pause);
    scale(&mut simulation.world, "web", 6);
    simulation.settle(60);
    assert_eq!(simulation.spread("web").into_iter().collect::<Vec<_>>(), [("a".into(), 2), ("b".into(), 4)]);
    simulation.check_settled("agent", 2);
    simulation.world.update_node("a", |node| node.spec.availability = Availability::Drain);
    simulation.settle(60);
    simulation.check_settled("web", 6);
    simulation.check_settled("agent", 1);
    assert_eq!(simulation.spread("web").into_iter().collect::<Vec<_>>(), [("b".into(), 6)]);
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut world = World::with_nodes(["a", "b"]);
    world.put_service(&service("web", 4));
    world.put_service(&global("agent"));
    let mut simulation = Simulation::new(world, 3);
    simulation.seconds(3);
    simulation.world.remove_service("web");
    simulation.world.remove_service("agent");
    simulation.settle(60);
    assert!(simulation.world.snapshot.tasks.is_empty(), "tasks are left:\n{}", simulation.describe());
    assert!(simulation.world.snapshot.statuses.is_empty());
    assert!(simulation.world.snapshot.specs.is_empty(), "specs are left");
}

#[derive(Debug, Clone)]
enum Event {
    Scale(u64),
    Label(usize, bool),
    Kill(usize),
    Revive(usize),
    Availability(usize, Availability),
    Image(u8),
    Wait(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let availability = prop_oneof![
        3 => Just(Availability::Active),
        1 => Just(Availability::Pause),
        1 => Just(Availability::Drain)
    ];
    prop_oneof![
        (0..12_u64).prop_map(Event::Scale),
        (0..5_usize, any::<bool>()).prop_map(|(node, on)| Event::Label(node, on)),
        (0..5_usize).prop_map(Event::Kill),
        (0..5_usize).prop_map(Event::Revive),
        (0..5_usize, availability).prop_map(|(node, availability)| Event::Availability(node, availability)),
        (0..4_u8).prop_map(Event::Image),
        (1..40_u32).prop_map(Event::Wait),
    ]
}

const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn happen(simulation: &mut Simulation, event: &Event) {
    match event {
        Event::Scale(replicas) => scale(&mut simulation.world, "web", *replicas),
        Event::Label(node, on) => simulation.world.update_node(NODES[*node], |node| {
            let zone = if *on { "in" } else { "out" };
            node.spec.labels.insert("zone".to_owned(), zone.to_owned());
        }),
        Event::Kill(node) => simulation.kill(NODES[*node]),
        Event::Revive(node) => simulation.revive(NODES[*node]),
        Event::Availability(node, availability) => {
            simulation.world.update_node(NODES[*node], |node| node.spec.availability = *availability);
        }
        Event::Image(version) => simulation.world.update_service("web", |spec| {
            spec.task_template.container_spec.get_or_insert_default().image = format!("nginx:{version}");
        }),
        Event::Wait(seconds) => simulation.seconds(*seconds),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happens, partly committed plans included: once it is over and all nodes are back,
    /// as many tasks as wanted run, each in a slot of its own.
    #[test]
    fn every_history_converges_to_the_specs(
        seed in any::<u64>(),
        start_first in any::<bool>(),
        parallelism in 0..4_u64,
        events in proptest::collection::vec((event(), 0..8_u32), 1..25),
    ) {
        let mut world = World::with_nodes(NODES);
        for node in NODES {
            world.update_node(node, |node| drop(node.spec.labels.insert("zone".to_owned(), "in".to_owned())));
        }
        let mut web = service("web", 5);
        web.ports = vec![ingress(80, 80)];
        web.spec.task_template.placement.get_or_insert_default().constraints.push("node.labels.zone==in".to_owned());
        web.spec.endpoint_spec.get_or_insert_default().ports.clone_from(&web.ports);
        web.spec.update_config = Some(UpdateConfig {
            parallelism,
            order: start_first.then_some(UpdateOrder::StartFirst),
            failure_action: Some(FailureAction::Continue),
            ..UpdateConfig::default()
        });
        world.put_service(&web);
        world.put_service(&global("agent"));
        let mut simulation = Simulation::new(world, seed);
        simulation.behaviour.failures_per_mille = 20;
        simulation.behaviour.cuts_percent = 10;
        for (event, pause) in &events {
            happen(&mut simulation, event);
            simulation.seconds(*pause);
        }
        simulation.behaviour.failures_per_mille = 0;
        simulation.behaviour.cuts_percent = 0;
        for node in NODES {
            simulation.revive(node);
            simulation.world.update_node(node, |node| {
                node.spec.availability = Availability::Active;
                node.spec.labels.insert("zone".to_owned(), "in".to_owned());
            });
        }
        simulation.settle(600);
        let wanted = simulation.world.snapshot.services[&"web".into()].spec.mode.replicas().unwrap();
        simulation.check_settled("web", usize::try_from(wanted).unwrap());
        simulation.check_settled("agent", NODES.len());
        let web = &simulation.world.snapshot.services[&"web".into()];
        let outdated = OutdatedTasks::new(&simulation.world.snapshot, web);
        prop_assert!(!simulation.running("web").iter().any(|task| outdated.contains(task)), "{}", simulation.describe());
    }
}
