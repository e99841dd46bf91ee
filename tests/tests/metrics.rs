//! Tests that the metrics are well-formed and correct.
#![cfg(feature = "cluster")]

use std::io::Write;
use std::net::SocketAddrV4;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_lab::client::http;
use mesh_lab::client::load::ask;
use mesh_lab::cluster::{Cluster, eventually, samples};
use mesh_tests::network::{Network, virtual_ip};
use mesh_tests::{PATIENCE, Service, answering_task, cluster, datagram_task};

#[test]
fn promtool_accepts_every_exposition() -> Result<()> {
    let cluster = cluster()?;
    let _service = Service::create(&cluster, "measured", &["--replicas", "2", "-p", "8099:80", "nginx"])?;
    for server in cluster.everywhere(8099) {
        cluster.ask(server, "/")?;
    }
    for node in &cluster.record.nodes {
        check(&node.name, &cluster.metrics(node)?)?;
        if node.manager {
            let control = SocketAddrV4::new(node.ip, 9465);
            let response = cluster.client().run(|| http::get(control, "/metrics", http::DEADLINE))?;
            check(&format!("control on {}", node.name), &response.text())?;
        }
    }
    Ok(())
}

fn check(whose: &str, exposition: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start promtool")?;
    promtool.stdin.take().context("no stdin")?.write_all(exposition.as_bytes())?;
    let output = promtool.wait_with_output()?;
    ensure!(
        output.status.success(),
        "promtool on {whose}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn counters_count_what_was_sent() -> Result<()> {
    const REQUESTS: u32 = 60;
    let cluster = cluster()?;
    let service = Service::create(&cluster, "counted", &["--replicas", "3", "-p", "8100:80", "nginx"])?;
    let node = cluster.record.nodes.first().context("no node")?;
    let server = SocketAddrV4::new(node.ip, 8100);
    cluster.client().run(|| (0..REQUESTS).try_for_each(|_| ask(server, "/").map(drop)))?;
    eventually("the requests in the counters", PATIENCE, || {
        let exposition = cluster.metrics(node)?;
        let labels = [("service", service.name())];
        let frontend: f64 = samples(&exposition, "mesh_frontend_connections_total", &labels).iter().sum();
        let backends = samples(&exposition, "mesh_backend_connections_total", &labels);
        let live: f64 = samples(&exposition, "mesh_backend_connections", &labels).iter().sum();
        let total = f64::from(REQUESTS);
        let exact = |seen: f64, wanted: f64| (seen - wanted).abs() < 0.5;
        ensure!(exact(frontend, total), "expected {total} connections, saw {frontend}");
        ensure!(
            backends.len() == 3 && backends.iter().all(|count| exact(*count, total / 3.0)),
            "expected {} on each of three backends, saw {backends:?}",
            total / 3.0
        );
        ensure!(exact(live, 0.0), "expected no live connection left, saw {live}");
        Ok(())
    })
}

/// Names that every agent exports once a service has been used.
const BY_AGENTS: [&str; 32] = [
    "mesh_build_info",
    "mesh_node_info",
    "mesh_frontend_connections_total",
    "mesh_frontend_packets_total",
    "mesh_frontend_bytes_total",
    "mesh_frontend_unassigned_total",
    "mesh_frontend_backends",
    "mesh_backend_info",
    "mesh_backend_up",
    "mesh_backend_connections_total",
    "mesh_backend_connections",
    "mesh_backend_packets_total",
    "mesh_backend_bytes_total",
    "mesh_backend_connect_failures_total",
    "mesh_backend_weight",
    "mesh_backend_health_checks_total",
    "mesh_backend_connect_duration_seconds",
    "mesh_flow_duration_seconds",
    "mesh_frontend_unremembered_syns_total",
    "mesh_lb_policy_info",
    "mesh_lb_policy_changes_total",
    "mesh_dataplane_attached",
    "mesh_store_revision",
    "mesh_dataplane_revision",
    "mesh_control_connected",
    "mesh_config_propagation_seconds",
    "mesh_proxy_counters_kept",
    "mesh_dns_questions_total",
    "mesh_dns_answer_duration_seconds",
    "mesh_dns_listening",
    "mesh_collector_success",
    "mesh_collector_duration_seconds",
];
/// Names that agents export once loads are known: those of their own tasks and, with replies, of
/// others.
const BY_LOAD: [&str; 2] = ["mesh_backend_load_ratio", "mesh_backend_load_age_seconds"];
/// Names of kernel programs and their maps, and of networks, which need them.
const BY_PROGRAMS: [&str; 21] = [
    "mesh_dropped_packets_total",
    "mesh_passed_packets_total",
    "mesh_syn_guard_active",
    "mesh_conntrack_entries",
    "mesh_conntrack_evictions_total",
    "mesh_bpf_map_entries",
    "mesh_bpf_map_max_entries",
    "mesh_bpf_map_operation_errors_total",
    "mesh_vip_connections_total",
    "mesh_vip_packets_total",
    "mesh_vip_bytes_total",
    "mesh_vip_unassigned_total",
    "mesh_vip_backends",
    "mesh_vip_backend_up",
    "mesh_vip_backend_connections_total",
    "mesh_vip_backend_connections",
    "mesh_vip_backend_bytes_total",
    "mesh_vip_backend_health_checks_total",
    "mesh_vip_connect_duration_seconds",
    "mesh_vip_flow_duration_seconds",
    "mesh_attached_containers",
];
/// Names that the leader's control exports.
const BY_CONTROL: [&str; 13] = [
    "mesh_build_info",
    "mesh_store_connected",
    "mesh_store_revision",
    "mesh_store_request_errors_total",
    "mesh_reconciles_total",
    "mesh_reconcile_duration_seconds",
    "mesh_service_tasks",
    "mesh_service_tasks_desired",
    "mesh_nodes",
    "mesh_leader",
    "mesh_clock_skew_seconds",
    "mesh_api_requests_total",
    "mesh_api_request_duration_seconds",
];

#[test]
fn every_name_of_the_catalogue_is_exposed() -> Result<()> {
    let cluster = cluster()?;
    let words = ["--mode", "global", "-p", "8105:80", "-p", "8106:9/udp", "whoami"];
    let service = Service::create(&cluster, "catalogued", &words)?;
    let network = Network::create(&cluster, "catalogued-net", &["--attachable"])?;
    let _clients = clients_of_a_virtual_ip(&cluster, &network)?;
    for (server, data) in cluster.everywhere(8105).into_iter().zip(cluster.everywhere(8106)) {
        cluster.client().run(|| {
            (0..6).try_for_each(|_| answering_task(server).and_then(|_| datagram_task(data)).map(drop))
        })?;
    }
    for node in &cluster.record.nodes {
        let programs = if cluster.record.datapath_of(node) == "userspace" { &[][..] } else { &BY_PROGRAMS };
        let names = BY_AGENTS.iter().chain(&BY_LOAD).chain(programs);
        eventually(&format!("every name on {}", node.name), PATIENCE, || {
            let text = cluster.metrics(node)?;
            let missing: Vec<&&str> = names.clone().filter(|name| !has_family(&text, name)).collect();
            ensure!(missing.is_empty(), "missing: {missing:?}");
            check_durations(&text, service.name())
        })?;
    }
    let leader = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?;
    let control = SocketAddrV4::new(leader.ip, 9465);
    let text = cluster.client().run(|| http::get(control, "/metrics", http::DEADLINE))?.text();
    let missing: Vec<&&str> = BY_CONTROL.iter().filter(|name| !has_family(&text, name)).collect();
    ensure!(missing.is_empty(), "missing on control: {missing:?}");
    Ok(())
}

/// A service on the network, and a task on each node that asks its virtual IP; both go when the
/// returned ones are dropped.
fn clients_of_a_virtual_ip(cluster: &Cluster, network: &Network) -> Result<[Service; 2]> {
    let asked = ["--detach", "--network", network.name(), "whoami"];
    let asked = Service::create(cluster, "asked", &asked)?;
    let address = eventually("a virtual IP", PATIENCE, || {
        virtual_ip(&cluster.docker()?, asked.name(), network.name())
    })?;
    let address = address.to_string();
    let words = ["--detach", "--mode", "global-job", "--network", network.name(), "whoami"];
    let words = [&words[..], &["--reach-all", "--reach", &address]].concat();
    Ok([Service::create(cluster, "asking", &words)?, asked])
}

fn has_family(exposition: &str, name: &str) -> bool {
    exposition
        .lines()
        .any(|line| line.strip_prefix("# TYPE ").is_some_and(|rest| rest.starts_with(&format!("{name} "))))
}

/// Six handshakes of each protocol, and the durations of six TCP connections. UDP flows go on for a
/// while.
fn check_durations(exposition: &str, service: &str) -> Result<()> {
    let count = |name: &str, protocol: &str| -> f64 {
        samples(exposition, name, &[("service", service), ("protocol", protocol)]).into_iter().sum()
    };
    let [tcp, udp] =
        ["tcp", "udp"].map(|protocol| count("mesh_backend_connect_duration_seconds_count", protocol));
    let lived = count("mesh_flow_duration_seconds_count", "tcp");
    ensure!((tcp, udp, lived) == (6.0, 6.0, 6.0), "handshakes: {tcp} tcp, {udp} udp; lives: {lived}");
    let sum = count("mesh_backend_connect_duration_seconds_sum", "tcp");
    ensure!(sum > 0.0 && sum < 6.0 * 5.0, "six handshakes took {sum} s");
    Ok(())
}
