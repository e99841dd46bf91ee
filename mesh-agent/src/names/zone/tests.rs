//! Tests of every kind of name in a network, and that no name is known outside of its network.

use std::collections::BTreeSet;

use mesh_state::ids::NodeId;
use mesh_state::proto;
use proptest::prelude::*;

use super::super::index::{TASK_TTL, VIRTUAL_IP_TTL};
use super::*;
use proto::BackendState::{Active, Draining, Retired, Silent, Unspecified};

fn network(name: &str, third: u8) -> proto::MeshNetwork {
    proto::MeshNetwork {
        id: name.into(),
        name: name.into(),
        number: u32::from(third) + 1,
        subnet: format!("10.0.{third}.0/24"),
        ..proto::MeshNetwork::default()
    }
}

fn service(name: &str, networks: &[(&str, &str, &[&str])]) -> proto::MeshService {
    let place = |(network, virtual_ip, aliases): &(&str, &str, &[&str])| proto::MeshServiceNetwork {
        network_id: (*network).into(),
        virtual_ip: (*virtual_ip).into(),
        aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
    };
    proto::MeshService {
        id: name.into(),
        name: name.into(),
        policy: "round-robin".into(),
        networks: networks.iter().map(place).collect(),
        ..proto::MeshService::default()
    }
}

/// A task of `service`, or an attached container if `service` is empty.
fn member(
    id: &str,
    service: &str,
    node: &str,
    state: proto::BackendState,
    places: &[(&str, &str)],
) -> proto::MeshMember {
    let place = |(network, address): &(&str, &str)| proto::MeshAttachment {
        network_id: (*network).into(),
        address: (*address).into(),
        ..proto::MeshAttachment::default()
    };
    proto::MeshMember {
        id: id.into(),
        service_id: service.into(),
        name: if service.is_empty() { id.into() } else { format!("{service}.1.{id}") },
        node_id: node.into(),
        container_id: format!("{id:0>64}"),
        state: state.into(),
        weight: 1,
        attachments: places.iter().map(place).collect(),
        ..proto::MeshMember::default()
    }
}

fn zone_of(table: &proto::MeshTable) -> Zone {
    let own = NodeView::new(NodeId::from("here"), Ipv4Addr::new(10, 77, 0, 11));
    Zone::of(&own.apply(table).expect("a good table"))
}

/// Two networks: `web` and `dns` are on `shop_net`, `web` also on `back`; `secret` is on `other`
/// only.
fn table() -> proto::MeshTable {
    let mut hosted =
        member("t2", "web", "there", Active, &[("shop_net", "10.0.1.12"), ("back", "10.0.2.12")]);
    hosted.hostname = "Box".into();
    hosted.container_id = "0123456789abcdef".into();
    proto::MeshTable {
        generation: 1,
        networks: vec![network("shop_net", 1), network("back", 2), network("other", 3)],
        services: vec![
            service("web", &[("shop_net", "10.0.1.2", &["www"]), ("back", "10.0.2.2", &[])]),
            service("dns", &[("shop_net", "", &["resolver"])]),
            service("idle", &[("shop_net", "10.0.1.3", &[]), ("back", "", &[])]),
            service("secret", &[("other", "10.0.3.2", &["hidden"])]),
        ],
        members: vec![
            member("t1", "web", "here", Active, &[("shop_net", "10.0.1.11"), ("back", "10.0.2.11")]),
            hosted,
            member("t3", "web", "there", Draining, &[("shop_net", "10.0.1.13")]),
            member("t4", "web", "there", Unspecified, &[("shop_net", "10.0.1.14")]),
            member("d1", "dns", "there", Active, &[("shop_net", "10.0.1.21")]),
            member("d2", "dns", "there", Active, &[("shop_net", "10.0.1.22")]),
            member("d3", "dns", "there", Silent, &[("shop_net", "10.0.1.23")]),
            member("s1", "secret", "there", Active, &[("other", "10.0.3.11")]),
            member("probe", "", "there", Unspecified, &[("back", "10.0.2.30")]),
        ],
        ..proto::MeshTable::default()
    }
}

fn scope(networks: &[&str]) -> Vec<NetworkId> {
    networks.iter().map(|network| NetworkId::from(*network)).collect()
}

/// Checks how `name` resolves for `t1`, which is on both networks.
fn check(name: &str, kind: Kind, expected: &Resolution) {
    let found = zone_of(&table()).resolve(&scope(&["shop_net", "back"]), false, name, kind);
    assert_eq!(found, *expected, "{name} {kind:?}");
}

fn addresses(addresses: &[&str], ttl: u32) -> Resolution {
    Resolution::Addresses { addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(), ttl }
}

#[test]
fn each_name_of_a_network_leads_where_swarm_leads_it() {
    let virtual_ip = addresses(&["10.0.1.2"], VIRTUAL_IP_TTL);
    check("web", Kind::Address, &virtual_ip);
    check("www", Kind::Address, &virtual_ip);
    check("web.shop_net", Kind::Address, &virtual_ip);
    check("www.shop_net", Kind::Address, &virtual_ip);
    check("web.back", Kind::Address, &addresses(&["10.0.2.2"], VIRTUAL_IP_TTL));
    let tasks = addresses(&["10.0.1.11", "10.0.1.12"], TASK_TTL);
    check("tasks.web", Kind::Address, &tasks);
    check("tasks.www", Kind::Address, &tasks);
    check("tasks.web.shop_net", Kind::Address, &tasks);
    let both = addresses(&["10.0.1.21", "10.0.1.22"], TASK_TTL);
    for name in ["dns", "resolver", "tasks.dns", "tasks.resolver", "dns.shop_net"] {
        check(name, Kind::Address, &both);
    }
    let task = addresses(&["10.0.1.12"], TASK_TTL);
    for name in
        ["web.1.t2", "0123456789ab", "box", "web.1.t2.shop_net", "0123456789ab.shop_net", "box.shop_net"]
    {
        check(name, Kind::Address, &task);
    }
    check("box.back", Kind::Address, &addresses(&["10.0.2.12"], TASK_TTL));
    check("probe", Kind::Address, &addresses(&["10.0.2.30"], TASK_TTL));
}

#[test]
fn addresses_lead_back_to_names() {
    let pointer = |name: &str| Resolution::Pointer { name: name.to_owned() };
    check("12.1.0.10.in-addr.arpa", Kind::Pointer, &pointer("web.1.t2.shop_net"));
    check("14.1.0.10.in-addr.arpa", Kind::Pointer, &pointer("web.1.t4.shop_net"));
    check("2.2.0.10.in-addr.arpa", Kind::Pointer, &pointer("web.back"));
    check("30.2.0.10.in-addr.arpa", Kind::Pointer, &pointer("probe.back"));
    check("30.2.0.10.in-addr.arpa", Kind::Other, &Resolution::NoData);
    check("99.1.0.10.in-addr.arpa", Kind::Pointer, &Resolution::NoName);
    check("11.3.0.10.in-addr.arpa", Kind::Pointer, &Resolution::NoName);
    check("8.8.8.8.in-addr.arpa", Kind::Pointer, &Resolution::Foreign);
    check("10.in-addr.arpa", Kind::Pointer, &Resolution::Foreign);
}

#[test]
fn the_port_of_a_service_is_the_one_that_was_asked_for() {
    let at = |addresses: &[&str], ttl| Resolution::Port {
        port: 8080,
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ttl,
    };
    check("_8080._tcp.web", Kind::Service, &at(&["10.0.1.2"], VIRTUAL_IP_TTL));
    check("_8080._udp.tasks.web", Kind::Service, &at(&["10.0.1.11", "10.0.1.12"], TASK_TTL));
    check("_8080._tcp.web", Kind::Address, &Resolution::Foreign);
    check("_0._tcp.web", Kind::Service, &Resolution::Foreign);
    check("web", Kind::Service, &Resolution::NoData);
}

#[test]
fn a_known_name_has_no_data_of_other_kinds_and_an_idle_service_no_tasks() {
    for name in ["web", "tasks.web", "box", "idle.shop_net"] {
        check(name, Kind::Other, &Resolution::NoData);
        check(name, Kind::Delegation, &Resolution::NoData);
    }
    check("idle", Kind::Address, &addresses(&["10.0.1.3"], VIRTUAL_IP_TTL));
    check("tasks.idle", Kind::Address, &Resolution::NoData);
    check("idle.back", Kind::Address, &Resolution::NoData);
}

#[test]
fn names_that_only_the_cluster_could_have_do_not_leave_it() {
    check("nobody", Kind::Address, &Resolution::NoName);
    check("nobody.shop_net", Kind::Address, &Resolution::NoName);
    check("a.b.shop_net", Kind::Address, &Resolution::NoName);
    // `back` could be a top-level domain as well.
    check("nobody.back", Kind::Address, &Resolution::Foreign);
    check("example.org", Kind::Address, &Resolution::Foreign);
    check("org", Kind::Delegation, &Resolution::Foreign);
    check("", Kind::Delegation, &Resolution::Foreign);
    let zone = zone_of(&table());
    let ask = |name| zone.resolve(&scope(&["shop_net"]), true, name, Kind::Address);
    assert_eq!(ask("nas"), Resolution::Foreign, "the task's own servers may know it");
    assert_eq!(ask("nas.shop_net"), Resolution::NoName);
}

#[test]
fn the_best_state_that_any_task_has_is_answered() {
    for (states, expected) in [
        (vec![Active, Draining, Silent], vec![0]),
        (vec![Draining, Silent, Retired], vec![0]),
        (vec![Silent, Unspecified, Retired], vec![0]),
        (vec![Retired, Unspecified], vec![]),
        (vec![Draining, Retired, Draining], vec![0, 2]),
    ] {
        let tasks = states.iter().enumerate().map(|(number, state)| {
            member(&format!("t{number}"), "web", "here", *state, &[("net_1", &format!("10.0.1.{number}"))])
        });
        let zone = zone_of(&proto::MeshTable {
            generation: 1,
            networks: vec![network("net_1", 1)],
            services: vec![service("web", &[("net_1", "", &[])])],
            members: tasks.collect(),
            ..proto::MeshTable::default()
        });
        let expected = match expected.as_slice() {
            [] => Resolution::NoData,
            numbers => Resolution::Addresses {
                addresses: numbers.iter().map(|number| Ipv4Addr::new(10, 0, 1, *number)).collect(),
                ttl: TASK_TTL,
            },
        };
        assert_eq!(zone.resolve(&scope(&["net_1"]), false, "web", Kind::Address), expected, "{states:?}");
    }
}

#[test]
fn nobody_takes_over_a_service_by_a_containers_name() {
    let mut table = table();
    let mut thief = member("web", "", "there", Active, &[("shop_net", "10.0.1.66")]);
    thief.hostname = "www".into();
    thief.attachments[0].aliases = vec!["tasks.web".into(), "mine".into()];
    table.members.push(thief);
    let zone = zone_of(&table);
    let ask = |name| zone.resolve(&scope(&["shop_net"]), false, name, Kind::Address);
    for name in ["web", "www", "tasks.web"] {
        let Resolution::Addresses { addresses, .. } = ask(name) else { panic!("{name} has addresses") };
        assert!(!addresses.contains(&Ipv4Addr::new(10, 0, 1, 66)), "{name}: {addresses:?}");
    }
    assert_eq!(ask("mine"), addresses(&["10.0.1.66"], TASK_TTL));
}

#[test]
fn services_that_share_an_alias_are_both_answered() {
    let mut table = table();
    table.services.push(service("api", &[("shop_net", "10.0.1.4", &["www"])]));
    let found = zone_of(&table).resolve(&scope(&["shop_net"]), false, "www", Kind::Address);
    assert_eq!(found, addresses(&["10.0.1.2", "10.0.1.4"], VIRTUAL_IP_TTL));
}

#[test]
fn a_member_on_this_node_is_known_by_its_address_and_others_are_not() {
    let zone = zone_of(&table());
    assert_eq!(zone.scope_of(Ipv4Addr::new(10, 0, 2, 11)), Some(&scope(&["shop_net", "back"])[..]));
    assert_eq!(zone.scope_of(Ipv4Addr::new(10, 0, 1, 12)), None, "it is on another node");
    assert!(zone.has_all(&scope(&["shop_net", "back"])));
    assert!(!zone.has_all(&scope(&["shop_net", "other"])), "this node has nobody there");
}

/// An attached container has an attachment for each of its networks.
#[test]
fn an_attached_container_knows_the_names_of_all_its_networks() {
    let guest = |id: &str, place: (&str, &str), container: &str| {
        let attached = member(id, "", "here", Unspecified, &[place]);
        proto::MeshMember { container_id: container.into(), ..attached }
    };
    let mut table = table();
    table.members.push(guest("g1", ("shop_net", "10.0.1.30"), "c1"));
    table.members.push(guest("g2", ("back", "10.0.2.30"), "c1"));
    table.members.push(guest("g3", ("other", "10.0.3.30"), ""));
    table.members.push(guest("g4", ("back", "10.0.2.31"), ""));
    let zone = zone_of(&table);
    let of = |address: [u8; 4]| zone.scope_of(address.into()).map(<[NetworkId]>::to_vec);
    assert_eq!(of([10, 0, 1, 30]), Some(scope(&["shop_net", "back"])));
    assert_eq!(of([10, 0, 2, 30]), Some(scope(&["shop_net", "back"])));
    assert_eq!(of([10, 0, 3, 30]), Some(scope(&["other"])), "who isn't made yet is nobody else");
    assert_eq!(of([10, 0, 2, 31]), Some(scope(&["back"])));
}

#[test]
fn an_index_of_a_large_network_is_quick() {
    let services: Vec<String> = (0..500).map(|number| format!("service-{number}")).collect();
    let member_of = |number: usize| {
        let [.., high, low] = (number + 1000).to_be_bytes();
        let (service, address) = (&services[number % 500], format!("10.1.{high}.{low}"));
        member(&format!("task{number:021}"), service, "there", Active, &[("big_net", &address)])
    };
    let mut big = network("big_net", 1);
    big.subnet = "10.1.0.0/16".into();
    big.node_addresses.insert("here".into(), "10.1.0.2".into());
    let table = proto::MeshTable {
        generation: 1,
        networks: vec![big],
        services: services.iter().map(|name| service(name, &[("big_net", "", &["alias"])])).collect(),
        members: (0..5000).map(member_of).collect(),
        ..proto::MeshTable::default()
    };
    let own = NodeView::new(NodeId::from("here"), Ipv4Addr::new(10, 77, 0, 11));
    let view = own.apply(&table).expect("a good table");
    let timed = || {
        let began = std::time::Instant::now();
        (Zone::of(&view), began.elapsed())
    };
    let ((zone, first), (_, second), (_, third)) = (timed(), timed(), timed());
    let Resolution::Addresses { addresses, .. } =
        zone.resolve(&scope(&["big_net"]), false, "alias", Kind::Address)
    else {
        panic!("the alias of all services has addresses");
    };
    assert_eq!(addresses.len(), 5000);
    // Generous, as tests are not optimised and the machine is busy; optimised, it takes a few
    // milliseconds.
    let quickest = first.min(second).min(third);
    assert!(quickest < std::time::Duration::from_secs(1), "it took {quickest:?}");
}

/// A table of three networks with random members; `asker` is on the first one.
fn random_table() -> impl Strategy<Value = proto::MeshTable> {
    let name = || proptest::sample::select(vec!["a", "b", "web", "db", "tasks.web", "net_1", "net_2", "box"]);
    let one = (1_u8..4, name(), name(), name(), any::<bool>(), any::<bool>());
    proptest::collection::vec(one, 0..24).prop_map(|drawn| {
        let mut table = proto::MeshTable {
            generation: 1,
            networks: vec![network("net_1", 1), network("net_2", 2), network("net_3", 3)],
            members: vec![member("asker", "", "here", Active, &[("net_1", "10.0.1.250")])],
            ..proto::MeshTable::default()
        };
        for (number, (third, name, alias, hostname, is_service, is_here)) in drawn.into_iter().enumerate() {
            let (network, address) = (format!("net_{third}"), format!("10.0.{third}.{}", 2 + number));
            let node = if is_here { "here" } else { "there" };
            if is_service {
                table.services.push(service(name, &[(&network, &address, &[alias])]));
            } else {
                let mut member = member(&format!("m{number}"), "", node, Active, &[(&network, &address)]);
                member.name = name.into();
                member.hostname = hostname.into();
                member.attachments[0].aliases = vec![alias.into()];
                table.members.push(member);
            }
        }
        table
    })
}

proptest! {
    /// Every answer has addresses and names of the asker's network only, whatever the question.
    #[test]
    fn no_answer_leaves_the_scope(table in random_table()) {
        let zone = zone_of(&table);
        let scope = scope(&["net_1"]);
        let hosts = ["a", "b", "web", "db", "tasks.web", "tasks.a", "box", "net_1", "net_2", "000000000m1"];
        let suffixes = ["", ".net_1", ".net_2", ".net_3", ".net_2.net_1", ".net_1.net_2"];
        let names: BTreeSet<String> =
            hosts.iter().flat_map(|host| suffixes.iter().map(move |suffix| format!("{host}{suffix}"))).collect();
        for name in &names {
            for asked in [name.clone(), format!("_80._tcp.{name}")] {
                for kind in [Kind::Address, Kind::Service, Kind::Pointer, Kind::Other] {
                    match zone.resolve(&scope, false, &asked, kind) {
                        Resolution::Addresses { addresses, .. } | Resolution::Port { addresses, .. } => {
                            prop_assert!(!addresses.is_empty());
                            for address in addresses {
                                prop_assert_eq!(address.octets()[2], 1, "{} leads to {}", asked, address);
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        for third in 1..4_u8 {
            for last in 0..=255_u8 {
                let name = format!("{last}.{third}.0.10.in-addr.arpa");
                if let Resolution::Pointer { name } = zone.resolve(&scope, false, &name, Kind::Pointer) {
                    prop_assert!(third == 1 && name.ends_with(".net_1"), "{}", name);
                }
            }
        }
    }
}
