//! Tests of published ports: every node answers, the load is spread evenly, the task sees the
//! client's address.
#![cfg(feature = "cluster")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::client::load::ask;
use mesh_lab::cluster::{Cluster, Docker, eventually, samples};
use mesh_lab::netns::Netns;
use mesh_tests::{PATIENCE, Service, cluster, datagram_task};

const REQUESTS: usize = 1000;

#[test]
fn every_node_answers_evenly_and_tasks_see_the_client() -> Result<()> {
    let cluster = cluster()?;
    let begun = Instant::now();
    let service = Service::create_verified(&cluster, "myweb", &["--replicas", "2", "-p", "80:80", "nginx"])?;
    let converged = begun.elapsed();
    // The CLI verifies for 5 s once all tasks run; mesh takes the rest. The bound is loose: this is
    // no benchmark.
    ensure!(converged < Duration::from_secs(10), "create converged after {converged:?}");
    for node in &cluster.record.nodes {
        let before = logged(&cluster, service.name())?;
        let server = SocketAddrV4::new(node.ip, 80);
        cluster.client().run(|| (0..REQUESTS).try_for_each(|_| ask(server, "/").map(drop)))?;
        let shares = eventually("every request in the logs", PATIENCE, || {
            let after = logged(&cluster, service.name())?;
            let shares: Vec<usize> =
                after.iter().map(|(task, count)| count - before.get(task).copied().unwrap_or(0)).collect();
            ensure!(shares.iter().sum::<usize>() == REQUESTS, "logged: {shares:?}");
            Ok(shares)
        })?;
        let even = REQUESTS / 2;
        ensure!(
            shares.len() == 2 && shares.iter().all(|share| share.abs_diff(even) * 10 <= even),
            "by {}: expected {even} ± 10 % on each of two tasks, saw {shares:?}",
            node.name
        );
    }
    Ok(())
}

/// The requests that each task logged. On an eBPF data path each must come from the client's own
/// address.
fn logged(cluster: &Cluster, service: &str) -> Result<BTreeMap<String, usize>> {
    let client = format!("{} ", cluster.record.client.ip);
    let client_kept = cluster.record.datapath != "userspace";
    let mut counts = BTreeMap::new();
    for (node, containers) in cluster.containers(service)? {
        let docker = Docker::towards(&cluster.node(&node)?.mesh_host);
        for (id, task) in containers {
            let log = docker.run(&["logs", &id])?;
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("GET /")).collect();
            let foreign = lines.iter().find(|line| !line.starts_with(&client));
            ensure!(
                !client_kept || foreign.is_none(),
                "{task} on {node} saw another client than {client}: {foreign:?}"
            );
            counts.insert(task, lines.len());
        }
    }
    Ok(counts)
}

#[test]
fn a_node_reaches_the_port_it_publishes() -> Result<()> {
    let cluster = cluster()?;
    let _service = Service::create(&cluster, "own", &["--replicas", "1", "-p", "8085:80", "nginx"])?;
    for node in &cluster.record.nodes {
        let netns = Netns::named(&node.netns);
        for address in [node.ip, Ipv4Addr::LOCALHOST] {
            eventually(&format!("{} to reach {address}:8085 itself", node.name), PATIENCE, || {
                netns.run(|| ask(SocketAddrV4::new(address, 8085), "/").map(drop))
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_node_reaches_the_udp_port_it_publishes() -> Result<()> {
    let cluster = cluster()?;
    let _service = Service::create(&cluster, "owndata", &["--replicas", "1", "-p", "8088:9/udp", "whoami"])?;
    for node in &cluster.record.nodes {
        let netns = Netns::named(&node.netns);
        for address in [node.ip, Ipv4Addr::LOCALHOST] {
            eventually(&format!("{} to reach {address}:8088/udp itself", node.name), PATIENCE, || {
                netns.run(|| datagram_task(SocketAddrV4::new(address, 8088)).map(drop))
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_port_that_a_process_holds_shows_on_the_tasks() -> Result<()> {
    let cluster = cluster()?;
    let holder = cluster.record.nodes.last().context("no node")?;
    let held = Netns::named(&holder.netns)
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8089)).context("hold the port"))?;
    let service = Service::create(&cluster, "clashing", &["--replicas", "1", "-p", "8089:80", "nginx"])?;
    let errors = || {
        let rows = cluster.docker()?.tasks(service.name())?;
        Ok::<_, anyhow::Error>(rows.into_iter().map(|row| row.error).collect::<Vec<_>>())
    };
    let expected = format!("port 8089/tcp on {}: in use by another process", holder.name);
    eventually("the clash on the task", PATIENCE, || {
        let errors = errors()?;
        ensure!(
            errors.iter().any(|error| error.contains(&expected)),
            "expected {expected:?}, saw {errors:?}"
        );
        Ok(())
    })?;
    let bound = samples(
        &cluster.metrics(holder)?,
        "mesh_dataplane_attached",
        &[("interface", ":8089"), ("hook", "listener")],
    );
    ensure!(bound == [0.0], "expected the port not to be bound, saw {bound:?}");
    drop(held);
    eventually("the task without a clash", PATIENCE, || {
        let errors = errors()?;
        ensure!(errors.iter().all(String::is_empty), "errors: {errors:?}");
        Ok(())
    })?;
    let own = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8089);
    Netns::named(&holder.netns).run(|| ask(own, "/").map(drop)).context("the port is the service's now")
}

#[test]
fn a_global_service_runs_on_every_node() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(&cluster, "everywhere", &["--mode", "global", "-p", "8086:80", "nginx"])?;
    let containers = cluster.containers(service.name())?;
    ensure!(
        containers.len() == cluster.record.nodes.len() && containers.values().all(|tasks| tasks.len() == 1),
        "expected one task on each node, saw {containers:?}"
    );
    for server in cluster.everywhere(8086) {
        cluster.ask(server, "/")?;
    }
    Ok(())
}

#[test]
fn a_port_with_no_running_task_refuses_at_once() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(&cluster, "hollow", &["--replicas", "1", "-p", "8087:80", "nginx"])?;
    cluster.docker()?.run(&["service", "scale", "--detach", "hollow=0"])?;
    for server in cluster.everywhere(8087) {
        eventually("a refusal", PATIENCE, || {
            let begun = Instant::now();
            let error = match cluster.client().run(|| ask(server, "/")) {
                Ok(answer) => anyhow::bail!("{server} of {} still answers {answer}", service.name()),
                Err(error) => format!("{error:#}"),
            };
            ensure!(
                begun.elapsed() < Duration::from_secs(1),
                "{server}: no answer instead of a RST: {error}"
            );
            Ok(())
        })?;
    }
    Ok(())
}
