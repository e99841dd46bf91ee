//! Tests of the families: what is counted where, and what promtool thinks of the text.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use mesh_ebpf::abi::{self, BackendStats, Direction, DropReason, FrontendStats, Traffic};
use mesh_state::ids::{BackendId, NodeId};
use mesh_state::proto;
use mesh_state::spec::Protocol;
use prometheus::TextEncoder;

use super::*;
use crate::datapath::contents::{Front, Frontend, NetworkAddress};
use crate::datapath::{
    AttachedHook, BackendSnapshot, ByProtocol, Evictions, FrontendSnapshot, HostSettings, MapFill,
    PortDurations,
};
use crate::proxy::ledger::{BackendFigures, FrontendFigures};

fn view() -> NodeView {
    let backend = |id: u32, state: proto::BackendState| proto::MeshBackend {
        id,
        service_id: "s".into(),
        task_id: format!("task{id}"),
        task_name: format!("web.{id}"),
        node_id: format!("node-{id}"),
        address: format!("10.128.0.{id}"),
        protocol: "tcp".into(),
        published: 80,
        target: 8080,
        state: state.into(),
        weight: 1,
        container_id: "c0ffee".into(),
    };
    let table = proto::MeshTable {
        generation: 9,
        nodes: vec![proto::MeshNode {
            id: "node-1".into(),
            address: "10.77.0.11".into(),
            hostname: "n1".into(),
            ..proto::MeshNode::default()
        }],
        services: vec![proto::MeshService {
            id: "s".into(),
            name: "web".into(),
            policy: "least-connections".into(),
            ports: vec![proto::MeshPort { protocol: "tcp".into(), published: 80, target: 8080 }],
            networks: vec![proto::MeshServiceNetwork {
                network_id: "n".into(),
                virtual_ip: "10.0.5.2".into(),
                ..proto::MeshServiceNetwork::default()
            }],
            ..proto::MeshService::default()
        }],
        backends: vec![
            backend(1, proto::BackendState::Active),
            backend(2, proto::BackendState::Draining),
            backend(3, proto::BackendState::Silent),
        ],
        networks: vec![proto::MeshNetwork {
            id: "n".into(),
            name: "app".into(),
            number: 5,
            subnet: "10.0.5.0/24".into(),
            attachable: true,
            ..proto::MeshNetwork::default()
        }],
        members: vec![
            attached("guest", "node-1"),
            attached("elsewhere", "node-2"),
            proto::MeshMember {
                id: "task1".into(),
                service_id: "s".into(),
                name: "web.1".into(),
                node_id: "node-1".into(),
                state: proto::BackendState::Active.into(),
                weight: 1,
                attachments: vec![proto::MeshAttachment {
                    network_id: "n".into(),
                    address: "10.0.5.7".into(),
                    backend_id: 17,
                    ..proto::MeshAttachment::default()
                }],
                ..proto::MeshMember::default()
            },
        ],
        ..proto::MeshTable::default()
    };
    NodeView::new(NodeId::from("node-1"), Ipv4Addr::new(10, 77, 0, 11)).apply(&table).expect("a good table")
}

/// A container that its user put on the network.
fn attached(id: &str, node: &str) -> proto::MeshMember {
    let place = proto::MeshAttachment {
        network_id: "n".into(),
        address: "10.0.5.9".into(),
        ..proto::MeshAttachment::default()
    };
    proto::MeshMember {
        id: id.into(),
        node_id: node.into(),
        attachments: vec![place],
        ..proto::MeshMember::default()
    }
}

fn timed(milliseconds: &[u64]) -> abi::Histogram {
    let mut histogram = abi::Histogram::default();
    for milliseconds in milliseconds {
        histogram.add(milliseconds * 1_000_000);
    }
    histogram
}

fn kernel() -> StatsSnapshot {
    let traffic = |packets, bytes| Traffic { packets, bytes };
    let place = NetworkAddress { network: 5, address: Ipv4Addr::new(10, 0, 5, 2) };
    let virtual_ip = FrontendSnapshot {
        front: Front::VirtualIp(place),
        policy: abi::Policy::RoundRobin,
        slots: 1,
        stats: FrontendStats { reply: traffic(2, 200), opened: 3, no_backend: 4, ..FrontendStats::default() },
        durations: PortDurations { connect: timed(&[1]), flow: timed(&[250]) },
    };
    let member = BackendSnapshot {
        id: 17,
        backend: abi::Backend { network: 5, ..abi::Backend::default() },
        stats: BackendStats { opened: 3, answered: 2, refused: 1, ..BackendStats::default() },
        live: 2,
        load: None,
    };
    let mut snapshot = StatsSnapshot {
        frontends: vec![FrontendSnapshot {
            front: Front::Port(Frontend { protocol: abi::protocol::TCP, port: 80 }),
            policy: abi::Policy::LeastConnections,
            slots: 1,
            stats: FrontendStats {
                request: traffic(3, 300),
                reply: traffic(4, 4000),
                opened: 10,
                no_backend: 1,
                unremembered: 12,
                ..FrontendStats::default()
            },
            durations: PortDurations { connect: timed(&[1, 3]), flow: timed(&[250]) },
        }],
        backends: vec![BackendSnapshot {
            id: 1,
            backend: abi::Backend { weight: 8, ..abi::Backend::default() },
            stats: BackendStats {
                request: traffic(3, 300),
                opened: 10,
                closed: 8,
                refused: 1,
                answered: 9,
                ..BackendStats::default()
            },
            live: 2,
            load: Some((64, Duration::from_secs(1))),
        }],
        drops: vec![(DropReason::NoFlow, Direction::Request, 5)],
        passed: vec![(Direction::Reply, 6)],
        is_guarding: true,
        conntrack: BTreeMap::from([("FLOWS_ESTABLISHED", ByProtocol { tcp: 7, udp: 2 })]),
        evictions: ByProtocol {
            tcp: Evictions { lru: 1, ..Evictions::default() },
            udp: Evictions { timeout: 8, ..Evictions::default() },
        },
        maps: vec![MapFill { map: "BACKENDS", entries: 3, capacity: 65_536 }],
        map_errors: BTreeMap::from([(("SLOTS", "update"), 1)]),
        hooks: vec![AttachedHook { interface: "eth0".into(), hook: "tc", mode: "tcx" }],
        host: HostSettings {
            restored: BTreeMap::from([("net.ipv4.ip_forward", 2)]),
            wrong: BTreeMap::from([("iptables nat DOCKER", "restart the engine".to_owned())]),
        },
    };
    snapshot.frontends.push(virtual_ip);
    snapshot.backends.push(member);
    snapshot
}

fn proxy() -> ProxyStats {
    let view = view();
    let service = view.services.keys().next().expect("a service").clone();
    let backend = BackendFigures {
        opened: 5,
        answered: 4,
        live: 1,
        request_bytes: 50,
        failures: [1, 2, 3],
        ..Default::default()
    };
    let frontend = FrontendFigures { opened: 5, no_backend: 2, all_refused: 3, ..Default::default() };
    ProxyStats {
        backends: BTreeMap::from([(BackendId::new(1).expect("an id"), backend)]),
        frontends: BTreeMap::from([((service, Protocol::Tcp, 80), frontend)]),
        listeners: BTreeMap::from([((Protocol::Tcp, 80), true), ((Protocol::Udp, 81), false)]),
    }
}

fn render(kernel: Option<&StatsSnapshot>, backends: MetricsBackends) -> String {
    rendered(kernel, backends, &BTreeSet::new())
}

fn rendered(kernel: Option<&StatsSnapshot>, backends: MetricsBackends, out: &BTreeSet<BackendId>) -> String {
    let node = NodeFacts {
        hostname: "n1".into(),
        role: "worker".into(),
        certificate_until: mesh_state::Timestamp::from_timestamp(1_800_000_090, 0),
        certificate_renewals: 3,
        kernel: "6.18.0".into(),
        datapath: "tc".into(),
        fallback: kernel.is_none().then_some("attach"),
    };
    let families = families(&Observation {
        view: &view(),
        applied: 8,
        connected: true,
        node: &node,
        now: mesh_state::Timestamp::from_timestamp(1_800_000_000, 0).expect("a moment"),
        proxy: &proxy(),
        is_proxy_kept: kernel.is_some(),
        kernel,
        loads: &BTreeMap::new(),
        ejected: out,
        policy_changes: &BTreeMap::from([(ServiceId::from("s"), 4)]),
        backends,
        collectors: &[Reading { name: "datapath", success: true, duration: Duration::from_millis(2) }],
    });
    TextEncoder::new().encode_to_string(&families).expect("families that can be written")
}

fn assert_lines(text: &str, expected: &[&str]) {
    for line in expected {
        assert!(text.lines().any(|seen| seen == *line), "expected the line\n{line}\nsaw\n{text}");
    }
}

#[test]
fn figures_of_programs_and_proxy_are_added() {
    let text = render(Some(&kernel()), MetricsBackends::Seen);
    assert_lines(
        &text,
        &[
            r#"mesh_certificate_seconds_left{certificate="node"} 90"#,
            r#"mesh_certificate_renewals_total{certificate="node"} 3"#,
            r#"mesh_frontend_connections_total{service="web",port="80",protocol="tcp"} 15"#,
            r#"mesh_frontend_bytes_total{service="web",port="80",protocol="tcp",direction="reply"} 4000"#,
            r#"mesh_frontend_unassigned_total{service="web",port="80",protocol="tcp",reason="no_backend"} 3"#,
            r#"mesh_frontend_unassigned_total{service="web",port="80",protocol="tcp",reason="all_refused"} 3"#,
            r#"mesh_backend_connections_total{service="web",port="80",protocol="tcp",task="web.1",backend_node="n1"} 15"#,
            r#"mesh_backend_connections{service="web",port="80",protocol="tcp",task="web.1",backend_node="n1"} 3"#,
            r#"mesh_backend_bytes_total{service="web",port="80",protocol="tcp",task="web.1",backend_node="n1",direction="request"} 350"#,
            r#"mesh_backend_connect_failures_total{service="web",port="80",protocol="tcp",task="web.1",backend_node="n1",reason="reset"} 3"#,
        ],
    );
}

#[test]
fn virtual_ips_show_with_their_network() {
    let text = render(Some(&kernel()), MetricsBackends::Seen);
    assert_lines(
        &text,
        &[
            r#"mesh_vip_connections_total{service="web",network="app"} 3"#,
            r#"mesh_attached_containers{network="app"} 1"#,
            r#"mesh_vip_bytes_total{service="web",network="app",direction="reply"} 200"#,
            r#"mesh_vip_unassigned_total{service="web",network="app",reason="no_backend"} 4"#,
            r#"mesh_vip_backends{service="web",network="app",state="active"} 1"#,
            r#"mesh_vip_backends{service="web",network="app",state="unhealthy"} 0"#,
            r#"mesh_vip_backend_up{service="web",network="app",task="web.1",backend_node="n1"} 1"#,
            r#"mesh_vip_backend_connections{service="web",network="app",task="web.1",backend_node="n1"} 2"#,
            r#"mesh_vip_backend_health_checks_total{service="web",network="app",task="web.1",backend_node="n1",result="failed"} 1"#,
            r#"mesh_vip_connect_duration_seconds_count{service="web",network="app"} 1"#,
        ],
    );
}

#[test]
fn durations_show_as_histograms() {
    let text = render(Some(&kernel()), MetricsBackends::Off);
    assert_lines(
        &text,
        &[
            r#"mesh_backend_connect_duration_seconds_bucket{service="web",port="80",protocol="tcp",le="0.000524288"} 0"#,
            r#"mesh_backend_connect_duration_seconds_bucket{service="web",port="80",protocol="tcp",le="0.001048576"} 1"#,
            r#"mesh_backend_connect_duration_seconds_bucket{service="web",port="80",protocol="tcp",le="0.004194304"} 2"#,
            r#"mesh_backend_connect_duration_seconds_bucket{service="web",port="80",protocol="tcp",le="17.179869184"} 2"#,
            r#"mesh_backend_connect_duration_seconds_sum{service="web",port="80",protocol="tcp"} 0.004"#,
            r#"mesh_backend_connect_duration_seconds_count{service="web",port="80",protocol="tcp"} 2"#,
            r#"mesh_flow_duration_seconds_bucket{service="web",port="80",protocol="tcp",le="0.067108864"} 0"#,
            r#"mesh_flow_duration_seconds_bucket{service="web",port="80",protocol="tcp",le="0.268435456"} 1"#,
            r#"mesh_flow_duration_seconds_count{service="web",port="80",protocol="tcp"} 1"#,
        ],
    );
}

#[test]
fn an_ejected_backend_is_not_up() {
    let ejected = BTreeSet::from([BackendId::new(1).expect("an id")]);
    let text = rendered(Some(&kernel()), MetricsBackends::Seen, &ejected);
    let labels = r#"service="web",port="80",protocol="tcp""#;
    let of_backend = format!(r#"{labels},task="web.1",backend_node="n1""#);
    for line in [
        format!("mesh_backend_up{{{of_backend}}} 0"),
        format!(r#"mesh_frontend_backends{{{labels},state="unhealthy"}} 2"#),
        format!(r#"mesh_backend_health_checks_total{{{of_backend},result="ok"}} 13"#),
        format!(r#"mesh_backend_health_checks_total{{{of_backend},result="failed"}} 7"#),
    ] {
        assert_lines(&text, &[line.as_str()]);
    }
}

#[test]
fn the_state_of_the_node_shows() {
    let text = render(Some(&kernel()), MetricsBackends::Seen);
    assert_lines(
        &text,
        &[
            r#"mesh_node_info{node_id="node-1",hostname="n1",role="worker",kernel="6.18.0",datapath="tc"} 1"#,
            r#"mesh_frontend_backends{service="web",port="80",protocol="tcp",state="draining"} 1"#,
            r#"mesh_frontend_backends{service="web",port="80",protocol="tcp",state="unhealthy"} 1"#,
            r#"mesh_lb_policy_info{service="web",port="80",protocol="tcp",policy="least-connections"} 1"#,
            r#"mesh_lb_policy_changes_total{service="web",port="80",protocol="tcp"} 4"#,
            r#"mesh_dropped_packets_total{reason="no_flow",direction="request"} 5"#,
            r#"mesh_passed_packets_total{direction="reply"} 6"#,
            r#"mesh_frontend_unremembered_syns_total{service="web",port="80",protocol="tcp"} 12"#,
            "mesh_syn_guard_active 1",
            "mesh_proxy_counters_kept 1",
            r#"mesh_conntrack_entries{protocol="tcp",table="flows_established"} 7"#,
            r#"mesh_conntrack_entries{protocol="udp",table="flows_established"} 2"#,
            r#"mesh_conntrack_evictions_total{protocol="tcp",cause="lru"} 1"#,
            r#"mesh_conntrack_evictions_total{protocol="udp",cause="timeout"} 8"#,
            r#"mesh_bpf_map_max_entries{map="BACKENDS"} 65536"#,
            r#"mesh_bpf_map_operation_errors_total{map="SLOTS",operation="update"} 1"#,
            r#"mesh_dataplane_attached{interface="eth0",hook="tc",mode="tcx"} 1"#,
            r#"mesh_host_settings_restored_total{setting="net.ipv4.ip_forward"} 2"#,
            r#"mesh_host_setting_wrong{setting="iptables nat DOCKER"} 1"#,
            r#"mesh_dataplane_attached{interface=":81/udp",hook="listener",mode="socket"} 0"#,
            "mesh_store_revision 9",
            "mesh_dataplane_revision 8",
            "mesh_control_connected 1",
            r#"mesh_collector_success{collector="datapath"} 1"#,
        ],
    );
}

#[test]
fn backends_show_as_asked() {
    for (backends, expected) in [
        (MetricsBackends::Seen, 1),
        (MetricsBackends::Local, 1),
        (MetricsBackends::All, 3),
        (MetricsBackends::Off, 0),
    ] {
        let text = render(None, backends);
        let seen = text.lines().filter(|line| line.starts_with("mesh_backend_up{")).count();
        assert_eq!(seen, expected, "series with {backends:?}");
        assert_lines(&text, &[r#"mesh_dataplane_fallback{cause="attach"} 1"#]);
    }
}

#[test]
fn every_series_is_there_once() {
    let text = render(Some(&kernel()), MetricsBackends::All);
    let mut series: Vec<_> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' ')).collect();
    let count = series.len();
    series.sort_unstable();
    series.dedup_by_key(|(name, _)| *name);
    assert_eq!(series.len(), count, "a series is there twice in\n{text}");
}

/// Needs Debian's package `prometheus`; without it, only CI fails.
#[test]
fn promtool_has_nothing_to_say() {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        assert!(std::env::var_os("CI").is_none(), "promtool is missing: run `cargo xtask setup`");
        eprintln!("skipped: promtool is missing, run `cargo xtask setup`");
        return;
    };
    let text = render(Some(&kernel()), MetricsBackends::All);
    let mut input = promtool.stdin.take().expect("its standard input");
    input.write_all(text.as_bytes()).expect("promtool reads");
    drop(input);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "promtool says: {said}");
}
