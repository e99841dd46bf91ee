//! Addresses in simulated clusters: whatever happens, none has two holders, none changes under its
//! holder, and none is left behind.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mesh_state::ids::{NetworkId, NodeId, ServiceId};
use mesh_state::network::Attachment;
use mesh_state::task::TaskState;
use proptest::prelude::*;

use super::simulator::Simulation;
use crate::feed::snapshot::ClusterSnapshot;
use crate::fixtures::{World, global, join, network, node, service};
use crate::slots::addresses::{Addresses, gateway, virtual_ips_wanted};

/// Who was seen with which address, as long as it is entitled to it.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// By service, its creation and network.
    virtual_ips: BTreeMap<(ServiceId, i64, NetworkId), Ipv4Addr>,
    nodes: BTreeMap<(NodeId, NetworkId), Ipv4Addr>,
}

impl Held {
    /// What holds at every moment. By records alone, not by the code that gives addresses.
    pub(super) fn check(&mut self, snapshot: &ClusterSnapshot) {
        let mut holders: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
        let mut hold = |address: Ipv4Addr, network: &NetworkId, holder: String| {
            if let Some(network) = snapshot.networks.get(network) {
                assert!(network.subnet.hosts().any(|host| host == address), "{holder} has {address}");
            }
            if let Some(other) = holders.insert(address, holder.clone()) {
                panic!("{address} is given to {other} and to {holder}");
            }
        };
        for network in snapshot.networks.values() {
            hold(gateway(network), &network.id, format!("the gateway of {}", network.name));
            for (node, address) in &network.node_addresses {
                hold(*address, &network.id, format!("node {node}"));
                let known = self.nodes.insert((node.clone(), network.id.clone()), *address);
                assert!(known.is_none_or(|known| known == *address), "node {node} had {known:?}");
            }
        }
        for service in snapshot.services.values() {
            for held in &service.virtual_ips {
                hold(held.address, &held.network_id, format!("service {}", service.id));
            }
        }
        for task in snapshot.tasks.values() {
            for attachment in &task.attachments {
                assert_eq!(
                    attachment.address.is_some(),
                    task.node_id.is_some(),
                    "addresses come with nodes: {task:?}"
                );
                if let Some(address) = attachment.address.filter(|_| !snapshot.state_of(task).is_terminal()) {
                    hold(address, &attachment.network_id, format!("task {}", task.id));
                }
            }
        }
        self.nodes.retain(|(node, _), _| snapshot.nodes.contains_key(node));
        self.virtual_ips_stay(snapshot);
    }

    fn virtual_ips_stay(&mut self, snapshot: &ClusterSnapshot) {
        let mut now = BTreeMap::new();
        for service in snapshot.services.values() {
            for network in virtual_ips_wanted(snapshot, service) {
                let held = service.virtual_ips.iter().find(|held| held.network_id == network);
                let key = (service.id.clone(), service.create_revision, network);
                if let Some(known) = self.virtual_ips.get(&key) {
                    assert_eq!(held.map(|held| held.address), Some(*known), "virtual IP of {key:?}");
                }
                now.extend(held.map(|held| (key, held.address)));
            }
        }
        self.virtual_ips = now;
    }
}

/// The names of the networks; their subnets are of 14, 30 and 6 hosts.
const NETWORKS: [&str; 3] = ["app", "db", "tiny"];
const NODES: [&str; 4] = ["a", "b", "c", "d"];

fn world() -> World {
    let mut world = World::with_nodes(NODES);
    for (name, (subnet, number)) in
        NETWORKS.iter().zip([("10.0.1.0/28", 1), ("10.0.2.0/27", 2), ("10.0.3.0/29", 3)])
    {
        world.put_network(&network(name, subnet, number));
    }
    world
}

#[derive(Debug, Clone)]
enum Event {
    Scale(u64),
    Join(Vec<&'static str>),
    Mode(bool),
    Image(u8),
    Remove,
    Kill(usize),
    Revive(usize),
    Expel(usize),
    Admit(usize),
    Lead,
    Wait(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0..NODES.len();
    prop_oneof![
        (0..12_u64).prop_map(Event::Scale),
        proptest::sample::subsequence(NETWORKS.to_vec(), 0..=2).prop_map(Event::Join),
        any::<bool>().prop_map(Event::Mode),
        (0..4_u8).prop_map(Event::Image),
        Just(Event::Remove),
        node.clone().prop_map(Event::Kill),
        node.clone().prop_map(Event::Revive),
        node.clone().prop_map(Event::Expel),
        node.prop_map(Event::Admit),
        Just(Event::Lead),
        (1..40_u32).prop_map(Event::Wait),
    ]
}

fn happen(simulation: &mut Simulation, event: &Event) {
    let world = &mut simulation.world;
    if !world.snapshot.services.contains_key(&"web".into()) {
        let mut web = service("web", 3);
        web.spec_version = 1 + world.snapshot.specs.keys().map(|(_, version)| *version).max().unwrap_or(0);
        join(&mut web.spec, &["app"]);
        world.put_service(&web);
    }
    match event {
        Event::Scale(replicas) => world.update_service("web", |spec| {
            spec.mode.replicated.get_or_insert_default().replicas = Some(*replicas);
        }),
        Event::Join(networks) => world.update_service("web", |spec| join(spec, networks)),
        Event::Mode(has_virtual_ips) => world.update_service("web", |spec| {
            let mode = if *has_virtual_ips { "vip" } else { "dnsrr" };
            mode.clone_into(&mut spec.endpoint_spec.get_or_insert_default().mode);
        }),
        Event::Image(version) => world.update_service("web", |spec| {
            spec.task_template.container_spec.get_or_insert_default().image = format!("nginx:{version}");
        }),
        Event::Remove => world.remove_service("web"),
        Event::Kill(number) => simulation.kill(NODES[*number]),
        Event::Revive(number) => revive(simulation, NODES[*number]),
        Event::Expel(number) => world.delete(mesh_state::keys::node(&NODES[*number].into())),
        Event::Admit(number) => {
            world.put_node(&node(NODES[*number]));
            revive(simulation, NODES[*number]);
        }
        Event::Lead => simulation.lead_by_a_clock_ahead(chrono::TimeDelta::seconds(2)),
        Event::Wait(seconds) => simulation.seconds(*seconds),
    }
}

fn revive(simulation: &mut Simulation, node: &str) {
    if simulation.world.snapshot.nodes.contains_key(&node.into()) {
        simulation.revive(node);
    }
}

/// How many more tasks a network has addresses for.
fn room(snapshot: &ClusterSnapshot, network: &str) -> usize {
    let mut addresses = Addresses::new(snapshot);
    let place = [Attachment { network_id: network.into(), address: None, backend_id: None }];
    std::iter::from_fn(|| addresses.for_task(&place).ok()).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// The simulator checks after each planner that no address has two holders or changes. In the
    /// end every task runs that there is room for, and once the services are gone, nodes alone have
    /// addresses.
    #[test]
    fn no_address_is_given_twice_or_lost(
        seed in any::<u64>(),
        events in proptest::collection::vec((event(), 0..6_u32), 1..20),
    ) {
        let mut world = world();
        let mut agent = global("agent");
        join(&mut agent.spec, &["db"]);
        world.put_service(&agent);
        let mut simulation = Simulation::new(world, seed);
        simulation.behaviour.failures_per_mille = 20;
        simulation.behaviour.cuts_percent = 10;
        for (event, pause) in &events {
            happen(&mut simulation, event);
            simulation.seconds(*pause);
        }
        simulation.behaviour.failures_per_mille = 0;
        simulation.behaviour.cuts_percent = 0;
        (0..NODES.len()).for_each(|number| happen(&mut simulation, &Event::Admit(number)));
        happen(&mut simulation, &Event::Join(vec!["app", "db"]));
        happen(&mut simulation, &Event::Scale(3));
        simulation.settle(900);
        simulation.check_settled("web", 3);
        simulation.check_settled("agent", NODES.len());
        simulation.world.remove_service("web");
        simulation.world.remove_service("agent");
        simulation.settle(900);
        let snapshot = &simulation.world.snapshot;
        for (name, hosts) in NETWORKS.iter().zip([14, 30, 6]) {
            let nodes = snapshot.networks[&NetworkId::from(*name)].node_addresses.len();
            prop_assert_eq!(room(snapshot, name), hosts - 1 - nodes, "free addresses of {}", name);
        }
    }
}

#[test]
fn a_used_up_network_is_told_at_the_tasks_and_they_run_once_it_has_room() {
    let mut world = world();
    let mut web = service("web", 5);
    join(&mut web.spec, &["tiny"]);
    world.put_service(&web);
    for name in &NODES[1..] {
        world.set_liveness(&(*name).into(), mesh_state::node::NodeState::Down);
    }
    let mut simulation = Simulation::new(world, 5);
    simulation.settle(60);
    // Five beside the gateway: the virtual IP, the bridge on `a`, and three tasks.
    assert_eq!(simulation.running("web").len(), 3, "{}", simulation.describe());
    let waiting = simulation.world.wanted("web").into_iter().filter(|task| task.node_id.is_none());
    let said: Vec<String> = waiting.map(|task| task.leader_status.err).collect();
    assert_eq!(said, ["no address left in network tiny (10.0.3.0/29)"; 2]);
    simulation.world.update_service("web", |spec| {
        spec.endpoint_spec.get_or_insert_default().mode = "dnsrr".to_owned();
    });
    simulation.settle(120);
    assert_eq!(simulation.running("web").len(), 4, "without its virtual IP: {}", simulation.describe());
}

#[test]
fn a_service_that_changes_networks_gets_new_tasks_on_them() {
    let mut world = world();
    let mut web = service("web", 2);
    join(&mut web.spec, &["app"]);
    world.put_service(&web);
    let mut simulation = Simulation::new(world, 6);
    simulation.settle(60);
    simulation.world.update_service("web", |spec| join(spec, &["db", "app"]));
    simulation.settle(120);
    for task in simulation.running("web") {
        let on: Vec<_> = task.attachments.iter().map(|one| one.network_id.as_str()).collect();
        assert_eq!(on, ["db", "app"], "{}", simulation.describe());
        assert_eq!(simulation.world.snapshot.state_of(&task), TaskState::Running);
    }
}
