//! Tests of IPv6 addresses of names, and of their reverse names.

use std::net::Ipv6Addr;

use mesh_state::ids::NodeId;
use mesh_state::proto::{self, BackendState};

use super::super::index::TASK_TTL;
use super::*;

/// A task or, without a service, an attached container on the network `six`.
fn member(id: &str, service: &str, address: &str) -> proto::MeshMember {
    proto::MeshMember {
        id: id.into(),
        service_id: service.into(),
        name: if service.is_empty() { id.into() } else { format!("{service}.1.{id}") },
        node_id: "here".into(),
        container_id: format!("{id:0>64}"),
        state: BackendState::Active.into(),
        weight: 1,
        attachments: vec![proto::MeshAttachment {
            network_id: "six".into(),
            address: address.into(),
            ..proto::MeshAttachment::default()
        }],
        ..proto::MeshMember::default()
    }
}

fn service(name: &str, virtual_ip: &str) -> proto::MeshService {
    let place = proto::MeshServiceNetwork {
        network_id: "six".into(),
        virtual_ip: virtual_ip.into(),
        ..proto::MeshServiceNetwork::default()
    };
    proto::MeshService {
        id: name.into(),
        name: name.into(),
        policy: "round-robin".into(),
        networks: vec![place],
        ..proto::MeshService::default()
    }
}

/// The service `web` with a virtual IP, `dns` without one, and the container `probe`, on a network
/// with this IPv6 subnet.
fn zone(subnet6: &str) -> Zone {
    let network = proto::MeshNetwork {
        id: "six".into(),
        name: "six".into(),
        number: 1,
        subnet: "10.0.1.0/24".into(),
        subnet6: subnet6.into(),
        ..proto::MeshNetwork::default()
    };
    let table = proto::MeshTable {
        generation: 1,
        networks: vec![network],
        services: vec![service("web", "10.0.1.2"), service("dns", "")],
        members: vec![
            member("t1", "web", "10.0.1.11"),
            member("t2", "web", "10.0.1.12"),
            member("d1", "dns", "10.0.1.21"),
            member("probe", "", "10.0.1.30"),
        ],
        ..proto::MeshTable::default()
    };
    let own = NodeView::new(NodeId::from("here"), Ipv4Addr::new(10, 77, 0, 11));
    Zone::of(&own.apply(&table).expect("a good table"))
}

fn ask(subnet6: &str, name: &str, kind: Kind) -> Resolution {
    zone(subnet6).resolve(&[NetworkId::from("six")], false, name, kind)
}

const SUBNET: &str = "fd00:55::/64";

#[test]
fn names_of_tasks_have_ipv6_addresses_and_virtual_ips_none() {
    let tasks = |addresses: &[&str]| Resolution::Addresses6 {
        addresses: addresses.iter().map(|text| text.parse::<Ipv6Addr>().unwrap()).collect(),
        ttl: TASK_TTL,
    };
    let both = tasks(&["fd00:55::a00:10b", "fd00:55::a00:10c"]);
    for (name, expected) in [
        ("tasks.web", both.clone()),
        ("tasks.web.six", both),
        ("web.1.t1", tasks(&["fd00:55::a00:10b"])),
        ("dns", tasks(&["fd00:55::a00:115"])),
        ("probe.six", tasks(&["fd00:55::a00:11e"])),
        ("web", Resolution::NoData),
        ("web.six", Resolution::NoData),
        ("nobody", Resolution::NoName),
    ] {
        assert_eq!(ask(SUBNET, name, Kind::Address6), expected, "{name}");
    }
    for name in ["web", "tasks.web", "dns", "probe"] {
        assert_eq!(ask("", name, Kind::Address6), Resolution::NoData, "{name} without IPv6");
    }
}

#[test]
fn ipv6_addresses_lead_back_to_names() {
    let reverse = |address: &str| {
        let octets = address.parse::<Ipv6Addr>().unwrap().octets();
        let digits = octets.iter().rev().flat_map(|octet| [octet & 0xf, octet >> 4]);
        let labels: Vec<String> = digits.map(|digit| format!("{digit:x}")).collect();
        format!("{}.ip6.arpa", labels.join("."))
    };
    let pointer = |name: &str| Resolution::Pointer { name: name.to_owned() };
    for (address, expected) in [
        ("fd00:55::a00:10b", pointer("web.1.t1.six")),
        ("fd00:55::a00:11e", pointer("probe.six")),
        ("fd00:55::a00:102", Resolution::NoName),
        ("fd00:55::ffff:a00:10b", Resolution::NoName),
        ("2001:db8::1", Resolution::Foreign),
    ] {
        assert_eq!(ask(SUBNET, &reverse(address), Kind::Pointer), expected, "{address}");
    }
    for name in ["b.0.1.0.ip6.arpa", "x.ip6.arpa", "ip6.arpa"] {
        assert_eq!(ask(SUBNET, name, Kind::Pointer), Resolution::Foreign, "{name}");
    }
    assert_eq!(ask("", &reverse("fd00:55::a00:10b"), Kind::Pointer), Resolution::Foreign, "without IPv6");
}
