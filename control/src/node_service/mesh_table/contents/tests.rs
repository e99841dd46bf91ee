//! Tests that following gives the same tables as making each from its snapshot alone.

use std::time::{Duration, Instant};

use mesh_state::attachment::AttachedContainer;
use mesh_state::ids::{AttachmentId, BackendId, NodeId, TaskId};
use mesh_state::keys;
use mesh_state::lb::WEIGHT_LABEL;
use mesh_state::network::{Attachment, VirtualIp};
use mesh_state::node::NodeState;
use mesh_state::proto::MeshTable;
use mesh_state::task::{ContainerStatus, TaskState, TaskStatus};
use proptest::prelude::*;

use super::*;
use crate::fixtures::{World, endpoint, ingress, join, network, node, service, task};

const SERVICES: [&str; 3] = ["s1", "s2", "s3"];
const NETWORKS: [&str; 3] = ["n1", "n2", "n3"];
const NODES: [&str; 2] = ["a", "b"];
const TASKS: [&str; 5] = ["t1", "t2", "t3", "t4", "t5"];
const CONTAINERS: [&str; 2] = ["c1", "c2"];
const STATES: [TaskState; 5] =
    [TaskState::Accepted, TaskState::Starting, TaskState::Running, TaskState::Failed, TaskState::Remove];

/// A change of the store. Numbers select by their remainder.
#[derive(Debug, Clone)]
enum Step {
    Service {
        service: usize,
        port: u16,
        networks: Vec<usize>,
        has_address: bool,
        weight: u32,
    },
    RemoveService {
        service: usize,
    },
    UpdateService {
        service: usize,
    },
    Network {
        network: usize,
        number: u32,
    },
    RemoveNetwork {
        network: usize,
    },
    Task {
        task: usize,
        service: usize,
        node: Option<usize>,
        network: Option<usize>,
        backend: u32,
        is_wanted: bool,
    },
    RemoveTask {
        task: usize,
    },
    Status {
        task: usize,
        state: usize,
    },
    RemoveStatus {
        task: usize,
    },
    Container {
        container: usize,
        node: usize,
        network: usize,
        address: Option<u8>,
    },
    RemoveContainer {
        container: usize,
    },
    Liveness {
        node: usize,
        state: usize,
    },
    Hostname {
        node: usize,
        name: u8,
    },
    Nothing,
}

fn steps() -> impl Strategy<Value = Step> {
    let which = || 0..12_usize;
    let service = (which(), 80..83_u16, prop::collection::vec(which(), 0..3), any::<bool>(), 1..3_u32);
    let task =
        (which(), which(), prop::option::of(which()), prop::option::of(which()), 1..40_u32, any::<bool>());
    let container = (which(), which(), which(), prop::option::of(2..9_u8));
    prop_oneof![
        3 => service.prop_map(|(service, port, networks, has_address, weight)| Step::Service {
            service, port, networks, has_address, weight
        }),
        2 => which().prop_map(|service| Step::RemoveService { service }),
        1 => which().prop_map(|service| Step::UpdateService { service }),
        2 => (which(), 0..3_u32).prop_map(|(network, number)| Step::Network { network, number }),
        1 => which().prop_map(|network| Step::RemoveNetwork { network }),
        5 => task.prop_map(|(task, service, node, network, backend, is_wanted)| Step::Task {
            task, service, node, network, backend, is_wanted
        }),
        1 => which().prop_map(|task| Step::RemoveTask { task }),
        5 => (which(), which()).prop_map(|(task, state)| Step::Status { task, state }),
        1 => which().prop_map(|task| Step::RemoveStatus { task }),
        2 => container.prop_map(|(container, node, network, address)| Step::Container {
            container, node, network, address
        }),
        1 => which().prop_map(|container| Step::RemoveContainer { container }),
        1 => (which(), which()).prop_map(|(node, state)| Step::Liveness { node, state }),
        1 => (which(), 0..3_u8).prop_map(|(node, name)| Step::Hostname { node, name }),
        1 => Just(Step::Nothing),
    ]
}

fn one_of<'a, const N: usize>(all: &[&'a str; N], index: usize) -> &'a str {
    all[index % N]
}

fn put_service(world: &mut World, id: &str, port: u16, networks: &[usize], has_address: bool, weight: u32) {
    let mut value = service(id, 1);
    // At 80, the service publishes nothing.
    if port > 80 {
        value.ports = vec![ingress(port, 8080)];
    }
    let networks: Vec<&str> = networks.iter().map(|network| one_of(&NETWORKS, *network)).collect();
    join(&mut value.spec, &networks);
    value.spec.labels.insert(WEIGHT_LABEL.to_owned(), weight.to_string());
    let addresses = networks.iter().filter(|_| has_address);
    value.virtual_ips = addresses
        .map(|id| VirtualIp { network_id: (*id).into(), address: "10.0.5.2".parse().unwrap() })
        .collect();
    world.put_service(&value);
}

fn put_task(
    world: &mut World,
    id: &str,
    service: &str,
    place: (Option<usize>, Option<usize>),
    backend: u32,
    is_wanted: bool,
) {
    let (node, network) = place;
    let mut value = task(id, service, 1);
    value.node_id = node.map(|node| one_of(&NODES, node).into());
    value.endpoints = vec![endpoint(backend, 81)];
    value.attachments = network
        .map(|network| Attachment {
            network_id: one_of(&NETWORKS, network).into(),
            address: Some("10.0.5.9".parse().unwrap()),
            backend_id: BackendId::new(backend),
        })
        .into_iter()
        .collect();
    if !is_wanted {
        value.desired_state = TaskState::Remove;
    }
    world.put_task(&value);
}

fn put_container(world: &mut World, id: &str, node: usize, network: usize, address: Option<u8>) {
    let container = AttachedContainer {
        id: id.into(),
        network_id: one_of(&NETWORKS, network).into(),
        node_id: one_of(&NODES, node).into(),
        container_id: format!("made-{id}"),
        name: id.to_owned(),
        hostname: String::new(),
        aliases: Vec::new(),
        wanted: None,
        address: address.map(|last| std::net::Ipv4Addr::new(10, 0, 5, last)),
        created_at: world.now,
    };
    world.put(keys::attachment(&container.id), &container);
}

fn take(world: &mut World, step: &Step) {
    match step {
        Step::Service { service, port, networks, has_address, weight } => {
            put_service(world, one_of(&SERVICES, *service), *port, networks, *has_address, *weight);
        }
        Step::RemoveService { service } => world.remove_service(one_of(&SERVICES, *service)),
        Step::UpdateService { service } => {
            let id = one_of(&SERVICES, *service);
            if world.snapshot.services.contains_key(&id.into()) {
                world.update_service(id, |spec| spec.task_template.force_update += 1);
            }
        }
        Step::Network { network: which, number } => {
            world.put_network(&network(one_of(&NETWORKS, *which), "10.0.5.0/24", *number));
        }
        Step::RemoveNetwork { network } => {
            world.delete(keys::network(&one_of(&NETWORKS, *network).into()));
        }
        Step::Task { task, service, node, network, backend, is_wanted } => {
            let (task, service) = (one_of(&TASKS, *task), one_of(&SERVICES, *service));
            put_task(world, task, service, (*node, *network), *backend, *is_wanted);
        }
        Step::RemoveTask { task } => world.delete(keys::task(&one_of(&TASKS, *task).into())),
        Step::Status { task, state } => {
            let container = ContainerStatus {
                container_id: "made".to_owned(),
                address: "10.128.0.2".parse().ok(),
                ..ContainerStatus::default()
            };
            let state = STATES[state % STATES.len()];
            let status = TaskStatus { state, container: Some(container), ..TaskStatus::default() };
            world.put(keys::status(&TaskId::from(one_of(&TASKS, *task))), &status);
        }
        Step::RemoveStatus { task } => world.delete(keys::status(&one_of(&TASKS, *task).into())),
        Step::Container { container, node, network, address } => {
            put_container(world, one_of(&CONTAINERS, *container), *node, *network, *address);
        }
        Step::RemoveContainer { container } => {
            world.delete(keys::attachment(&AttachmentId::from(one_of(&CONTAINERS, *container))));
        }
        Step::Liveness { node, state } => {
            let states = [NodeState::Ready, NodeState::Silent, NodeState::Down];
            world.set_liveness(&one_of(&NODES, *node).into(), states[state % states.len()]);
        }
        Step::Hostname { node, name } => {
            world.update_node(one_of(&NODES, *node), |node| {
                node.description.hostname = format!("host-{name}");
            });
        }
        Step::Nothing => world.put(keys::BACKEND_CURSOR.to_owned(), &7_u32),
    }
}

fn world() -> World {
    let mut world = World::new();
    for (id, address) in [("a", "10.77.0.1"), ("b", "10.77.0.2")] {
        let mut member = node(id);
        member.address = address.parse().ok();
        world.add_node(&member);
    }
    world
}

/// The whole table that a node has which had `table` and applied `changes`.
fn applied(mut table: MeshTable, changes: MeshTable) -> MeshTable {
    table.generation = changes.generation;
    table.committed_unix_ms = changes.committed_unix_ms;
    macro_rules! merge {
        ($set:ident, $removed:ident) => {
            let set = changes.$set;
            table
                .$set
                .retain(|old| !changes.$removed.contains(&old.id) && set.iter().all(|new| new.id != old.id));
            table.$set.extend(set);
            table.$set.sort_by(|one, other| one.id.cmp(&other.id));
        };
    }
    merge!(nodes, removed_node_ids);
    merge!(services, removed_service_ids);
    merge!(backends, removed_backend_ids);
    merge!(networks, removed_network_ids);
    merge!(members, removed_member_ids);
    table
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// After any changes, one or several at a time, the table is that of the snapshot alone, and
    /// the messages of changes lead a node to it.
    #[test]
    fn following_gives_the_table_of_the_snapshot_alone(
        batches in prop::collection::vec(prop::collection::vec(steps(), 1..4), 1..25),
    ) {
        let mut world = world();
        let mut contents = Contents::default();
        let mut last = contents.follow(&Arc::new(world.snapshot.clone()));
        let mut of_node = last.whole();
        for batch in &batches {
            for step in batch {
                take(&mut world, step);
            }
            let table = contents.follow(&Arc::new(world.snapshot.clone()));
            prop_assert_eq!(&table, &Table::of(&world.snapshot), "after {:?}", batch);
            of_node = applied(of_node, table.since(&last));
            prop_assert_eq!(&of_node, &table.whole(), "by the changes of {:?}", batch);
            last = table;
        }
    }
}

#[test]
fn a_change_leaves_the_other_entries_as_they_are() {
    let mut world = world();
    world.put_network(&network("n1", "10.0.5.0/24", 1));
    put_service(&mut world, "s1", 81, &[0], true, 1);
    put_service(&mut world, "s2", 82, &[0], true, 1);
    let mut contents = Contents::default();
    let before = contents.follow(&Arc::new(world.snapshot.clone()));
    world.put_network(&network("n2", "10.0.6.0/24", 2));
    let after = contents.follow(&Arc::new(world.snapshot.clone()));
    assert!(after.entries.services.is_same(&before.entries.services), "a network touches no service");
    assert!(after.entries.nodes.is_same(&before.entries.nodes));
    world.remove_service("s2");
    let last = contents.follow(&Arc::new(world.snapshot.clone()));
    assert!(last.entries.services["s1"].is_same(&before.entries.services["s1"]));
    assert!(last.entries.networks.is_same(&after.entries.networks));
    assert_eq!(last.since(&after).removed_service_ids, ["s2"]);
    let node = NodeId::from("a");
    world.set_liveness(&node, NodeState::Silent);
    assert_eq!(contents.follow(&Arc::new(world.snapshot.clone())), Table::of(&world.snapshot));
}

/// The shortest time of ten runs, each on what `prepare` gives: a busy machine makes some longer.
fn shortest<T>(mut prepare: impl FnMut(usize) -> T, mut run: impl FnMut(T)) -> Duration {
    let times = (0..10).map(|number| {
        let prepared = prepare(number);
        let began = Instant::now();
        run(prepared);
        began.elapsed()
    });
    times.min().unwrap()
}

#[test]
fn a_change_among_a_thousand_services_costs_a_fraction_of_their_table() {
    let mut world = world();
    world.put_network(&network("n1", "10.0.5.0/24", 1));
    for number in 0..1000 {
        put_service(&mut world, &format!("s{number}"), 81, &[0], true, 1);
    }
    let whole =
        shortest(|_| Table::of(&world.snapshot), |last| drop(Table::of(&world.snapshot).since(&last)));
    let mut contents = Contents::default();
    let mut last = contents.follow(&Arc::new(world.snapshot.clone()));
    let next = |number: usize| {
        put_service(&mut world, &format!("s{number}"), 81, &[0], false, 2);
        Arc::new(world.snapshot.clone())
    };
    let change = shortest(next, |snapshot| {
        let table = contents.follow(&snapshot);
        assert_eq!(table.since(&last).services.len(), 1);
        last = table;
    });
    println!("the whole table and its message: {whole:?}; those of a change: {change:?}");
    assert!(change * 4 < whole, "a change took {change:?}, the whole table {whole:?}");
}
