//! Users' networks: who has which address, as whom veths may send, virtual IPs, isolation.

use mesh_ebpf::abi::{Address, Endpoint, EndpointKey, ISOLATED, REACHABLE, Subnet6, endpoint_flag};
use mesh_state::ids::NetworkId;

use super::*;
use crate::datapath::contents::NetworkAddress;
use crate::datapath::facts::Cable;
use crate::datapath::network::far_end::FarEnd;
use crate::view::{AttachmentView, MemberView, NetworkView, ServiceNetwork};

const NUMBER: u32 = 5;
const HERE: u32 = 40;

fn on_network(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 5, last)
}

fn place(last: u8) -> NetworkAddress {
    NetworkAddress { network: NUMBER, address: on_network(last) }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0x42, 10, 0, 5, last])
}

fn member(id: &str, node: u8, last: u8, backend: u32) -> MemberView {
    MemberView {
        id: id.to_owned(),
        service_id: Some("db".into()),
        name: format!("db.{id}"),
        node_id: format!("node{node}").into(),
        container_id: String::new(),
        hostname: String::new(),
        state: Some(view::BackendState::Active),
        weight: NonZeroU32::MIN,
        attachments: vec![AttachmentView {
            network_id: "app".into(),
            address: on_network(last),
            backend_id: BackendId::new(backend),
            aliases: Vec::new(),
        }],
    }
}

/// Service `db` has the virtual IP .2 on network `app`: task 7 here by interface 40, task 8 on
/// another node. Nobody here is on network `other`.
fn world() -> (NodeView, Facts) {
    let mut view = view_of(2, &[vec![80], vec![], vec![]], &[false; 3], &BTreeMap::new());
    for (number, node) in (1..).zip(view.nodes.values_mut()) {
        node.subnet = format!("10.128.{number}.0/24").parse().ok();
    }
    for (id, number, own) in [("app", NUMBER, Some(on_network(3))), ("other", 6, None)] {
        let network = NetworkView {
            id: id.into(),
            name: id.to_owned(),
            number,
            subnet: format!("10.0.{number}.0/24").parse().expect("a subnet"),
            subnet6: None,
            node_address: own,
            internal: false,
            attachable: false,
        };
        view.networks.insert(network.id.clone(), network);
    }
    let networks = ["app", "other"].map(|id| ServiceNetwork {
        network_id: NetworkId::from(id),
        virtual_ip: Some(on_network(2)),
        aliases: Vec::new(),
    });
    let db = ServiceView {
        id: "db".into(),
        name: "db".to_owned(),
        lb: lb::LbSettings::default(),
        ports: Vec::new(),
        networks: networks.to_vec(),
    };
    view.services.insert(db.id.clone(), db);
    for member in [member("7", 1, 7, 17), member("8", 2, 8, 18)] {
        view.members.insert(member.id.clone(), member);
    }
    let mut facts = facts_of(2, &BTreeMap::new());
    plug(&mut facts, HERE, 7, 7);
    (view, facts)
}

fn plug(facts: &mut Facts, ifindex: u32, last: u8, mac_ends: u8) {
    let end = Some(FarEnd { mac: mac(mac_ends), address: on_network(last) });
    facts.cables.insert(ifindex, Cable { network: NUMBER, end });
}

/// Every step is safe: what a slot names can be delivered, and a veth that may send has an address.
fn check_step(contents: &Contents) {
    for (front, service) in &contents.services {
        for id in contents.members(service) {
            let backend = contents.backends.get(&id).filter(|backend| backend.is_alive());
            let backend = backend.unwrap_or_else(|| panic!("{front} names {id}, which is absent or down"));
            let std::net::IpAddr::V4(address) = backend.task_address.into() else { panic!("{backend:?}") };
            let place = NetworkAddress { network: backend.network, address };
            let endpoint = contents.endpoints.get(&place);
            assert!(endpoint.is_some_and(|endpoint| endpoint.backend == id), "{id} at {endpoint:?}");
        }
    }
    for (ifindex, link) in &contents.links {
        let key = EndpointKey { network: link.network, address: link.address };
        let endpoint = contents.endpoints.get(&key.into());
        assert!(endpoint.is_some_and(|endpoint| endpoint.ifindex == *ifindex), "{link:?} at {endpoint:?}");
    }
    for (network, value) in contents.isolated.iter().filter(|(network, _)| network.prefix_len() == 24) {
        let own: IpNet = "10.128.1.0/24".parse().expect("a network");
        let gateway: IpNet = "10.128.1.1/32".parse().expect("a network");
        let is_open = contents.isolated.get(&gateway) == Some(&REACHABLE);
        assert!(*network != own || *value != ISOLATED || is_open, "the way to names is closed");
    }
}

fn follow(contents: &mut Contents, view: &NodeView, facts: &Facts) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut held = Held::default();
    for _ in 0..3 {
        let plan = plan(contents, Some(view), facts, &held);
        assert_eq!(plan.refused, [], "there is room");
        for write in &plan.writes {
            contents.apply(write);
            check_step(contents);
        }
        held.slots.clone_from(&plan.freed);
        writes.extend(plan.writes);
        if !plan.again {
            break;
        }
    }
    assert_eq!(plan(contents, Some(view), facts, &held), Plan::default(), "nothing is left to do");
    writes
}

fn followed(view: &NodeView, facts: &Facts) -> Contents {
    let mut contents = Contents::default();
    follow(&mut contents, view, facts);
    contents
}

fn members(contents: &Contents) -> Vec<u32> {
    let service = contents.services[&Front::VirtualIp(place(2))];
    contents.members(&service).collect()
}

#[test]
fn an_address_leads_to_its_veth_here_or_to_its_node() {
    let (view, facts) = world();
    let contents = followed(&view, &facts);
    let node = contents.peers[&node_address(2).into()];
    let here = Endpoint { ifindex: HERE, mac: mac(7), backend: 17, ..Endpoint::default() };
    let there = Endpoint { node, backend: 18, ..Endpoint::default() };
    let bridge = Endpoint { flags: endpoint_flag::BRIDGE, ..Endpoint::default() };
    let expected = BTreeMap::from([(place(3), bridge), (place(7), here), (place(8), there)]);
    assert_eq!(contents.endpoints, expected, "of the networks that this node takes part in");
    let link = contents.links[&HERE];
    let key = EndpointKey::from(place(7));
    assert_eq!((link.network, link.address, link.mac, link.backend), (NUMBER, key.address, mac(7), 17));
    assert_eq!(link.mask, u32::from_ne_bytes([255, 255, 255, 0]));
    assert_eq!(members(&contents), [17, 18]);
    let fronts: Vec<&Front> = contents.services.keys().collect();
    let port = Front::Port(Frontend { protocol: protocol::TCP, port: 80 });
    assert_eq!(
        fronts,
        [&port, &Front::VirtualIp(place(2))],
        "no virtual IP of a network without members here"
    );
    let indexes: BTreeSet<u32> = contents.services.values().map(|service| service.index).collect();
    assert_eq!(indexes.len(), 2, "ports and virtual IPs share the indexes");
    let backend = contents.backends[&17];
    assert_eq!(backend.task_address6, on_network(2).into(), "the virtual IP, for replies");
    assert_eq!((backend.network, backend.is_local(), backend.task_port_be.get()), (NUMBER, false, 0));
}

#[test]
fn what_is_not_connected_yet_gets_nothing_and_may_send_nothing() {
    let (view, mut facts) = world();
    facts.cables.get_mut(&HERE).expect("the veth").end = None;
    let mut contents = followed(&view, &facts);
    assert!(contents.links.is_empty(), "{:?}", contents.links);
    assert_eq!(members(&contents), [18]);
    plug(&mut facts, HERE, 7, 7);
    follow(&mut contents, &view, &facts);
    assert_eq!(members(&contents), [17, 18]);
    facts.cables.clear();
    follow(&mut contents, &view, &facts);
    assert!(contents.links.is_empty(), "its veth is gone");
    assert_eq!(members(&contents), [18]);
}

#[test]
fn a_veth_may_send_as_a_member_of_this_node_and_stays_who_it_is() {
    let (mut view, mut facts) = world();
    plug(&mut facts, 41, 8, 8);
    plug(&mut facts, 42, 9, 9);
    plug(&mut facts, 43, 7, 66);
    let mut contents = followed(&view, &facts);
    let only_here = |contents: &Contents| contents.links.keys().copied().collect::<Vec<_>>() == [HERE];
    assert!(only_here(&contents), "not as a task of another node, as nobody, or as another's twin");

    // A lower index, and another identity of the first.
    plug(&mut facts, 39, 7, 7);
    plug(&mut facts, HERE, 9, 9);
    view.members.insert("9".to_owned(), member("9", 1, 9, 19));
    facts.cables.remove(&42);
    assert_eq!(
        follow(&mut contents, &view, &facts).iter().filter(|write| matches!(write, Write::Link(..))).count(),
        0
    );
    assert!(only_here(&contents) && contents.links[&HERE].mac == mac(7));
}

#[test]
fn a_change_of_one_member_is_a_few_writes() {
    let (mut view, facts) = world();
    for last in 20..220 {
        let id = last.to_string();
        view.members.insert(id.clone(), member(&id, 2, last, 1000 + u32::from(last)));
    }
    let mut contents = followed(&view, &facts);
    view.generation += 1;
    view.members.remove("8");
    let writes = follow(&mut contents, &view, &facts);
    assert!(writes.len() <= 6, "{writes:?}");
    let at = |is_it: fn(&Write) -> bool| writes.iter().position(is_it).expect("a write");
    let (slots, service) = (
        at(|write| matches!(write, Write::Slots { .. })),
        at(|write| matches!(write, Write::Service(Front::VirtualIp(_), _))),
    );
    let (down, gone) = (
        at(|write| matches!(write, Write::Backend(18, _))),
        at(|write| matches!(write, Write::RemoveEndpoint(_))),
    );
    assert!(slots < service && service < down && down < gone, "{writes:?}");
}

#[test]
fn a_network_that_is_left_leaves_nothing_and_its_policy_is_its_services() {
    let (mut view, mut facts) = world();
    let mut contents = followed(&view, &facts);
    view.services.values_mut().for_each(|service| service.lb.policy = lb::Policy::LeastConnections);
    facts.ejected.insert(18);
    facts.weights.insert(17, 3);
    follow(&mut contents, &view, &facts);
    let service = contents.services[&Front::VirtualIp(place(2))];
    assert_eq!(service.policy, Policy::LeastConnections as u8);
    assert_eq!(members(&contents), [17], "the other's handshakes fail");
    assert_eq!(contents.backends[&17].weight, 3, "slow start");
    view.members.clear();
    view.networks.clear();
    follow(&mut contents, &view, &facts);
    assert!(contents.endpoints.is_empty() && contents.links.is_empty(), "{contents:?}");
    assert!(!contents.services.contains_key(&Front::VirtualIp(place(2))));
    assert!(!contents.alive().any(|(id, _)| id == 17));
}

#[test]
fn tasks_are_kept_from_each_others_addresses_and_from_networks() {
    let (view, facts) = world();
    let contents = followed(&view, &facts);
    let isolated: BTreeMap<String, u32> =
        contents.isolated.iter().map(|(network, value)| (network.to_string(), *value)).collect();
    let expected = [
        ("10.0.5.0/24", ISOLATED),
        ("10.0.6.0/24", ISOLATED),
        ("10.128.1.0/24", ISOLATED),
        ("10.128.1.1/32", REACHABLE),
        ("10.128.2.0/24", ISOLATED),
        ("fd6d:6573:68::a80:100/120", ISOLATED),
        ("fd6d:6573:68::a80:101/128", REACHABLE),
        ("fd6d:6573:68::a80:200/120", ISOLATED),
    ];
    assert_eq!(isolated, expected.map(|(network, value)| (network.to_owned(), value)).into());
}

#[test]
fn a_network_with_ipv6_has_its_prefix_in_the_maps_and_is_isolated() {
    let (mut view, facts) = world();
    for (id, subnet) in [("app", "fd00:55::/64"), ("other", "fd00:66::/64")] {
        view.networks.get_mut(&NetworkId::from(id)).expect("a network").subnet6 = subnet.parse().ok();
    }
    let mut contents = followed(&view, &facts);
    let prefix = Subnet6::of(&Address::from("fd00:55::".parse::<std::net::IpAddr>().expect("an address")));
    assert_eq!(contents.subnets6, BTreeMap::from([(NUMBER, prefix)]), "nobody here is on the other one");
    for subnet in ["fd00:55::/64", "fd00:66::/64"] {
        let subnet: IpNet = subnet.parse().expect("a network");
        assert_eq!(contents.isolated.get(&subnet), Some(&ISOLATED), "{subnet}");
    }
    view.networks.clear();
    view.members.clear();
    follow(&mut contents, &view, &Facts { cables: BTreeMap::new(), ..facts });
    assert_eq!(contents.subnets6, BTreeMap::new());
}

#[test]
fn a_restarted_agent_that_heard_nothing_yet_changes_nothing() {
    let (view, facts) = world();
    let mut contents = followed(&view, &facts);
    let unheard =
        plan(&contents, None, &Facts { cables: BTreeMap::new(), ..facts.clone() }, &Held::default());
    assert_eq!(unheard, Plan::default());
    // Its watch finds the veths before it is told a table; it can't ask their other ends.
    let cables = facts.cables.keys().map(|ifindex| (*ifindex, Cable { network: NUMBER, end: None }));
    let restarted = Facts { cables: cables.collect(), ..facts };
    assert_eq!(follow(&mut contents, &view, &restarted), []);
}
