//! Tests of the view's pure core.

use proptest::prelude::*;

use super::*;

fn own_view() -> NodeView {
    NodeView::new(NodeId::from("node-a"), Ipv4Addr::new(10, 77, 0, 11))
}

fn node(id: &str, last: u8) -> proto::MeshNode {
    proto::MeshNode {
        id: id.into(),
        address: format!("10.77.0.{last}"),
        hostname: id.into(),
        subnet: String::new(),
        datapath: "tc".into(),
        takes_cookies: true,
        ..proto::MeshNode::default()
    }
}

fn service(id: &str, published: u32) -> proto::MeshService {
    proto::MeshService {
        id: id.into(),
        name: id.into(),
        policy: "round-robin".into(),
        ports: vec![proto::MeshPort { protocol: "tcp".into(), published, target: 80 }],
        ..proto::MeshService::default()
    }
}

fn backend(id: u32, service: &str, published: u32) -> proto::MeshBackend {
    proto::MeshBackend {
        id,
        service_id: service.into(),
        task_id: format!("task-{id}"),
        task_name: format!("{service}.{id}"),
        node_id: "node-a".into(),
        address: "10.128.1.2".into(),
        protocol: "tcp".into(),
        published,
        target: 80,
        state: proto::BackendState::Active.into(),
        weight: 1,
        container_id: "c0ffee".into(),
    }
}

fn whole(generation: u64) -> proto::MeshTable {
    proto::MeshTable {
        generation,
        base_generation: 0,
        nodes: vec![node("node-a", 11), node("node-b", 12)],
        services: vec![service("web", 80), service("api", 8080)],
        backends: vec![backend(1, "web", 80), backend(2, "web", 80), backend(3, "api", 8080)],
        committed_unix_ms: 1_000,
        ..proto::MeshTable::default()
    }
}

#[test]
fn a_whole_table_replaces_all_but_the_nodes_own_facts() {
    let mut first = own_view().apply(&whole(5)).expect("the first table");
    first.subnet = "10.128.1.0/24".parse().ok();
    let table = proto::MeshTable { generation: 9, services: vec![service("new", 81)], ..Default::default() };
    let next = first.apply(&table).expect("another whole table");
    assert_eq!(next.generation, 9);
    assert_eq!(
        (next.nodes.len(), next.services.len(), next.backends.len()),
        (0, 1, 0),
        "nothing old is left"
    );
    assert_eq!(
        (&next.node_id, next.address, next.subnet),
        (&first.node_id, first.address, first.subnet),
        "what the node knows of itself is no part of the table"
    );
}

#[test]
fn a_delta_changes_what_it_names() {
    let view = own_view().apply(&whole(5)).expect("the first table");
    let mut draining = backend(2, "web", 80);
    draining.state = proto::BackendState::Draining.into();
    let delta = proto::MeshTable {
        generation: 6,
        base_generation: 5,
        removed_node_ids: vec!["node-b".into()],
        removed_service_ids: vec!["api".into()],
        removed_backend_ids: vec![3],
        backends: vec![draining, backend(4, "web", 80)],
        committed_unix_ms: 2_000,
        ..proto::MeshTable::default()
    };
    let next = view.apply(&delta).expect("a fitting delta");
    let states: Vec<_> = next.backends.values().map(|backend| (backend.id.get(), backend.state)).collect();
    assert_eq!(
        states,
        [(1, BackendState::Active), (2, BackendState::Draining), (4, BackendState::Active)],
        "backends after the delta"
    );
    assert_eq!(next.nodes.keys().map(NodeId::as_str).collect::<Vec<_>>(), ["node-a"]);
    assert_eq!(next.services.keys().map(ServiceId::as_str).collect::<Vec<_>>(), ["web"]);
    assert_eq!((next.generation, next.committed_unix_ms), (6, 2_000));
}

#[test]
fn deltas_for_other_generations_and_older_tables_are_refused() {
    let view = own_view().apply(&whole(5)).expect("the first table");
    for (generation, base_generation, expected) in [
        (7, 6, ViewError::Gap { base: 6, ours: 5 }),
        (5, 4, ViewError::Gap { base: 4, ours: 5 }),
        (4, 5, ViewError::Stale { got: 4, ours: 5 }),
        (4, 0, ViewError::Stale { got: 4, ours: 5 }),
    ] {
        let table = proto::MeshTable { generation, base_generation, ..proto::MeshTable::default() };
        assert_eq!(view.apply(&table), Err(expected), "generation {generation} on {base_generation}");
    }
    assert_eq!(view.apply(&whole(5)), Ok(view.clone()), "the same whole table again changes nothing");
}

#[test]
fn an_entry_that_cannot_be_read_is_named() {
    type Break = fn(&mut proto::MeshTable);
    let cases: [(Break, &str); 8] = [
        (|table| table.nodes[0].address = "fe80::1".into(), "address"),
        (|table| table.services[0].policy = "fastest".into(), "policy"),
        (|table| table.services[0].ports[0].protocol = "sctp".into(), "protocol"),
        (|table| table.services[0].ports[0].published = 70_000, "published port"),
        (|table| table.backends[0].id = 0, "id"),
        (|table| table.backends[0].target = 0, "target port"),
        (|table| table.backends[0].state = 0, "state"),
        (|table| table.backends[0].weight = 0, "weight"),
    ];
    for (spoil, expected) in cases {
        let mut table = whole(5);
        spoil(&mut table);
        match own_view().apply(&table) {
            Err(ViewError::InvalidField { field, .. }) => assert_eq!(field, expected),
            other => panic!("expected the {expected} to be refused, saw {other:?}"),
        }
    }
}

#[test]
fn backends_belong_to_their_port() {
    let view = own_view().apply(&whole(5)).expect("the first table");
    let counts: Vec<_> = view
        .frontends_with_backends()
        .map(|(service, port, backends)| {
            let ids: Vec<_> = backends.iter().map(|backend| backend.id.get()).collect();
            (service.name.as_str(), port.published, ids)
        })
        .collect();
    assert_eq!(counts, [("api", 8080, vec![3]), ("web", 80, vec![1, 2])]);
}

proptest! {
    /// A delta gives what the whole table of the same contents gives.
    #[test]
    fn a_delta_equals_its_whole_table(
        before in proptest::collection::btree_set(1u32..40, 0..20),
        after in proptest::collection::btree_set(1u32..40, 0..20),
    ) {
        let backends = |ids: &std::collections::BTreeSet<u32>| -> Vec<_> {
            ids.iter().map(|id| backend(*id, "web", 80)).collect()
        };
        let table = |generation, ids| proto::MeshTable { backends: backends(ids), ..whole(generation) };
        let first = own_view().apply(&table(1, &before)).expect("the first table");
        let delta = proto::MeshTable {
            generation: 2,
            base_generation: 1,
            backends: backends(&after.difference(&before).copied().collect()),
            removed_backend_ids: before.difference(&after).copied().collect(),
            committed_unix_ms: 1_000,
            ..proto::MeshTable::default()
        };
        let by_delta = first.apply(&delta).expect("a fitting delta");
        let by_table = own_view().apply(&table(2, &after)).expect("the whole table");
        prop_assert_eq!(by_delta, by_table);
    }
}
