//! Random tables, applied step by step to a model of the maps, against an oracle that computes the
//! result from scratch.
//!
//! Invariants checked: no step leaves a service pointing at a backend that is absent or down, no
//! slot in use is rewritten, indexes stay, and the end is what the table and the node's facts say.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use mesh_ebpf::abi::{Config, Mac, Policy, protocol};
use mesh_state::ids::{BackendId, NodeId};
use mesh_state::lb;
use mesh_state::spec::Protocol;
use proptest::prelude::*;

use super::*;
use crate::datapath::facts::Hop;
use crate::view::{self, PeerNode, PortView};

mod networks;
mod settings;

const OWN: &str = "node1";
const GENERATION: u64 = 7;

fn port_of(front: &Front) -> Option<u16> {
    match front {
        Front::Port(frontend) => Some(frontend.port),
        Front::VirtualIp(_) => None,
    }
}

fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

fn task_address(id: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 + id)
}

/// One backend as drawn.
#[derive(Debug, Clone)]
struct Drawn {
    service: usize,
    node: u8,
    /// Which of its service's ports, and which attempt at the task.
    port: usize,
    attempt: u32,
    state: view::BackendState,
    weight: u32,
    link: u8,
}

fn view_of(nodes: u8, ports: &[Vec<u16>], policies: &[bool], drawn: &BTreeMap<u32, Drawn>) -> NodeView {
    let mut view = NodeView::new(NodeId::from(OWN), node_address(1));
    view.generation = GENERATION;
    for number in 1..=nodes {
        let id = NodeId::from(format!("node{number}"));
        let address = node_address(number);
        let node = PeerNode {
            id: id.clone(),
            address,
            hostname: String::new(),
            subnet: None,
            in_userspace: false,
            takes_cookies: false,
            encryption: None,
        };
        view.nodes.insert(id, node);
    }
    for (number, published) in ports.iter().enumerate() {
        let id = mesh_state::ids::ServiceId::from(format!("service{number}"));
        let policy = if policies[number] { lb::Policy::LeastConnections } else { lb::Policy::RoundRobin };
        let ports = published
            .iter()
            .map(|published| PortView { protocol: Protocol::Tcp, published: *published, target: 8080 })
            .collect();
        view.services.insert(
            id.clone(),
            ServiceView {
                networks: Vec::new(),
                id,
                name: String::new(),
                lb: lb::LbSettings { policy, ..lb::LbSettings::default() },
                ports,
            },
        );
    }
    for (number, drawn) in drawn {
        let published = ports[drawn.service].get(drawn.port).copied().unwrap_or(9999);
        let Some(id) = BackendId::new(*number) else { continue };
        let backend = BackendView {
            id,
            service_id: format!("service{}", drawn.service).into(),
            task_id: format!("task{number}").into(),
            task_name: String::new(),
            node_id: format!("node{}", drawn.node).into(),
            address: task_address(number + 256 * drawn.attempt).into(),
            protocol: Protocol::Tcp,
            published,
            target: 8080,
            state: drawn.state,
            weight: NonZeroU32::new(drawn.weight).unwrap(),
            container_id: String::new(),
        };
        view.backends.insert(id, backend);
    }
    view
}

fn facts_of(nodes: u8, drawn: &BTreeMap<u32, Drawn>) -> Facts {
    let ports = drawn.iter().filter_map(|(id, drawn)| {
        let port = match drawn.link {
            0 => return None,
            1 => TaskPort::Gone,
            link => TaskPort::Attached {
                ifindex: u32::from(link),
                mac: Mac([link; 6]),
                address6: Address([link; 16]),
            },
        };
        Some((task_address(id + 256 * drawn.attempt).into(), port))
    });
    let hop = |number| Hop { ifindex: 2, mac: Mac([number; 6]), source_mac: Mac([9; 6]) };
    Facts {
        config: Config { address: node_address(1).into(), tunnel_mtu: 1450, ..Config::default() },
        addresses: (1..=nodes).map(|number| Ipv4Addr::new(192, 0, 2, number).into()).collect(),
        own: Node { address: node_address(1).into(), ifindex: 2, ..Node::default() },
        hops: (1..=nodes).map(|number| (node_address(number).into(), hop(number))).collect(),
        ports: ports.collect(),
        ..Facts::default()
    }
}

/// Random services with random backends: the table and the node's own facts at one moment.
fn worlds() -> impl Strategy<Value = (NodeView, Facts)> {
    let published = prop::sample::subsequence(vec![80, 81, 82, 443], 0..=2);
    let drawn = (
        (0..3_usize, 1..5_u8, 0..2_usize, 0..2_u32),
        prop::sample::select(view::BackendState::ALL.to_vec()),
        1..4_u32,
        0..5_u8,
    )
        .prop_map(|((service, node, port, attempt), state, weight, link)| Drawn {
            service,
            node,
            port,
            attempt,
            state,
            weight,
            link,
        });
    (
        1..5_u8,
        prop::collection::vec(published, 3),
        prop::collection::vec(any::<bool>(), 3),
        prop::collection::btree_map(1..12_u32, drawn, 0..12),
    )
        .prop_map(|(nodes, ports, policies, drawn)| {
            (view_of(nodes, &ports, &policies, &drawn), facts_of(nodes, &drawn))
        })
}

/// No service may point at a slot whose backend the programs don't know.
fn check_no_dangling_slot(contents: &Contents, after: &Write) -> Result<(), TestCaseError> {
    for (frontend, service) in &contents.services {
        for id in contents.members(service) {
            let alive = contents.backends.get(&id).is_some_and(Backend::is_alive);
            prop_assert!(
                alive,
                "after {after:?}, {frontend} points at backend {id}, which is absent or down"
            );
        }
    }
    Ok(())
}

/// Applies plans until nothing is left to do, checking every step.
fn converge(
    contents: &mut Contents,
    view: &NodeView,
    facts: &Facts,
    held: &mut Held,
) -> Result<(), TestCaseError> {
    for _ in 0..3 {
        let plan = plan(contents, Some(view), facts, held);
        prop_assert_eq!(&plan.refused, &Vec::new(), "there is room for everything");
        let in_use: Vec<Range<u32>> =
            contents.services.values().map(slots_of).chain(held.slots.clone()).collect();
        for write in &plan.writes {
            if let Write::Slots { base, backends } = write {
                let end = base + u32::try_from(backends.len()).unwrap();
                for used in &in_use {
                    prop_assert!(
                        used.end <= *base || end <= used.start,
                        "slots {base}..{end} are rewritten while {used:?} may be read"
                    );
                }
            }
            contents.apply(write);
            check_no_dangling_slot(contents, write)?;
        }
        held.slots = plan.freed;
        if !plan.again {
            return Ok(());
        }
    }
    prop_assert!(false, "three plans were not enough");
    Ok(())
}

/// What the maps should say of a backend, worked out without looking at the maps.
fn is_reachable(view: &NodeView, facts: &Facts, backend: &BackendView, before: &Contents) -> bool {
    let published = view
        .services
        .get(&backend.service_id)
        .is_some_and(|service| service.ports.iter().any(|port| port.published == backend.published));
    let first_owner = view
        .services
        .values()
        .find(|service| service.ports.iter().any(|port| port.published == backend.published))
        .is_some_and(|service| service.id == backend.service_id);
    if !published || !first_owner {
        return false;
    }
    if backend.node_id != view.node_id {
        return view.nodes.contains_key(&backend.node_id);
    }
    match facts.ports.get(&backend.address.into()) {
        Some(TaskPort::Attached { .. }) => true,
        Some(TaskPort::Gone) => false,
        None => before.backends.get(&backend.id.get()).is_some_and(|present| {
            present.is_local()
                && present.is_alive()
                && present.task_address == backend.address.into()
                && present.published_port_be.get() == backend.published
        }),
    }
}

fn check_converged(
    contents: &Contents,
    before: &Contents,
    view: &NodeView,
    facts: &Facts,
) -> Result<(), TestCaseError> {
    let reachable: BTreeMap<u32, &BackendView> = view
        .backends
        .values()
        .filter(|backend| is_reachable(view, facts, backend, before))
        .map(|backend| (backend.id.get(), backend))
        .collect();
    let alive: Vec<u32> = contents.alive().map(|(id, _)| id).collect();
    let expected: Vec<u32> = reachable.keys().copied().collect();
    prop_assert_eq!(alive, expected, "backends alive in the map");
    let published: BTreeSet<u16> =
        view.services.values().flat_map(|service| service.ports.iter().map(|port| port.published)).collect();
    let present: BTreeSet<u16> = contents.services.keys().filter_map(port_of).collect();
    prop_assert_eq!(present, published, "published ports in the map");
    for (front, service) in &contents.services {
        let Some(port) = port_of(front) else { continue };
        let candidates: Vec<Candidate> = reachable
            .values()
            .filter(|backend| backend.published == port)
            .map(|backend| Candidate {
                id: backend.id.get(),
                state: backend.state,
                weight: backend.weight.get(),
                is_local: view.is_local(backend),
            })
            .collect();
        let seen: Vec<u32> = contents.members(service).collect();
        prop_assert_eq!(seen, compose(lb::Policy::RoundRobin, false, &candidates), "slots of {}", front);
        if let Some(earlier) = before.services.get(front) {
            prop_assert_eq!(earlier.index, service.index, "index of {} changed", front);
        }
        for id in contents.members(service) {
            prop_assert_eq!(
                contents.backends[&id].service_index,
                service.index,
                "backend {} counts elsewhere",
                id
            );
        }
    }
    let indexes: BTreeSet<u32> = contents.services.values().map(|service| service.index).collect();
    prop_assert_eq!(indexes.len(), contents.services.len(), "service indexes are distinct");
    check_nodes(contents, view, facts)
}

fn check_nodes(contents: &Contents, view: &NodeView, facts: &Facts) -> Result<(), TestCaseError> {
    let others: BTreeSet<Address> = view
        .nodes
        .values()
        .map(|node| Address::from(node.address))
        .filter(|address| *address != facts.config.address)
        .collect();
    let peers: BTreeSet<Address> = contents.peers.keys().copied().collect();
    prop_assert_eq!(&peers, &others, "peers are the other member nodes");
    prop_assert_eq!(contents.nodes.len(), others.len() + 1, "the others and this node");
    for (address, index) in &contents.peers {
        prop_assert_eq!(contents.nodes[index].address, *address, "node {}", index);
        prop_assert_eq!(contents.nodes[index].mac, facts.hops[address].mac, "MAC of node {}", index);
    }
    prop_assert_eq!(
        contents.addresses.get(&facts.config.address),
        Some(&0),
        "index of the node's own address"
    );
    prop_assert_eq!(contents.addresses.len(), facts.addresses.len() + 1, "addresses");
    prop_assert_eq!(Config { generation: 0, ..contents.config }, facts.config);
    prop_assert_eq!(contents.config.generation, generation_of(view), "the table that the maps follow");
    Ok(())
}

proptest! {
    #[test]
    fn every_step_is_safe_and_the_end_is_right(worlds in prop::collection::vec(worlds(), 1..5)) {
        let (mut contents, mut held) = (Contents::default(), Held::default());
        for (view, facts) in &worlds {
            let before = contents.clone();
            converge(&mut contents, view, facts, &mut held)?;
            check_converged(&contents, &before, view, facts)?;
            let idle = plan(&contents, Some(view), facts, &held);
            prop_assert_eq!(idle, Plan::default(), "nothing is left to do");
        }
    }

    #[test]
    fn without_a_view_services_and_backends_stay(world in worlds()) {
        let (view, facts) = world;
        let (mut contents, mut held) = (Contents::default(), Held::default());
        converge(&mut contents, &view, &facts, &mut held)?;
        let restarted = plan(&contents, None, &Facts { ports: BTreeMap::new(), ..facts }, &Held::default());
        prop_assert_eq!(restarted, Plan::default(), "a restarted agent that heard nothing yet changes nothing");
    }
}

fn small_world() -> (NodeView, Facts) {
    let drawn = |node, link| Drawn {
        service: 0,
        node,
        port: 0,
        attempt: 0,
        state: view::BackendState::Active,
        weight: 1,
        link,
    };
    let drawn = BTreeMap::from([(1, drawn(1, 4)), (2, drawn(2, 0))]);
    (view_of(2, &[vec![80], vec![], vec![]], &[false; 3], &drawn), facts_of(2, &drawn))
}

#[test]
fn a_policy_switch_is_one_write() {
    let (mut view, facts) = small_world();
    let mut contents = Contents::default();
    for write in plan(&contents, Some(&view), &facts, &Held::default()).writes {
        contents.apply(&write);
    }
    for service in view.services.values_mut() {
        service.lb.policy = lb::Policy::LeastConnections;
    }
    let plan = plan(&contents, Some(&view), &facts, &Held::default());
    let [Write::Service(_, service)] = plan.writes.as_slice() else {
        panic!("expected one write of the service, saw {:?}", plan.writes);
    };
    assert_eq!(service.policy, Policy::LeastConnections as u8);
    assert_eq!(plan.freed, [], "the slots stay");
}

#[test]
fn the_table_that_changes_the_maps_is_named_before_its_first_change() {
    let (mut view, facts) = small_world();
    let mut contents = Contents::default();
    converge(&mut contents, &view, &facts, &mut Held::default()).expect("the first table");
    view.generation = GENERATION + 1;
    let idle = plan(&contents, Some(&view), &facts, &Held::default());
    assert_eq!(idle, Plan::default(), "a table that changes nothing");
    view.services.clear();
    let departure = plan(&contents, Some(&view), &facts, &Held::default());
    let named = Write::Config(Config { generation: generation_of(&view), ..facts.config });
    assert_eq!(departure.writes.first(), Some(&named), "first write of {:?}", departure.writes);
}

#[test]
fn what_finds_no_slots_is_refused_by_name_and_the_rest_goes_ahead() {
    let (view, facts) = small_world();
    let everything = 0..names::SLOTS_MAX;
    let held = Held { slots: vec![everything], ..Held::default() };
    let plan = plan(&Contents::default(), Some(&view), &facts, &held);
    assert_eq!(plan.refused, [Refusal::Slots(Front::Port(Frontend { protocol: protocol::TCP, port: 80 }))]);
    assert!(
        plan.writes.iter().any(|write| matches!(write, Write::Backend(2, _))),
        "backends are written all the same: {:?}",
        plan.writes
    );
    assert_eq!(plan.refused[0].to_string(), "the backends of published port 80/tcp");
}
