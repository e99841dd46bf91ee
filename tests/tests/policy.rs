//! Tests that the operator chooses the policy, and can switch it while traffic flows.
#![cfg(feature = "cluster")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, TaskRow, eventually, samples};
use mesh_tests::{PATIENCE, Service, answering_task, cluster};

/// Connections that load one backend.
const PINNED: usize = 50;

#[test]
fn least_connections_avoids_a_pinned_backend_and_cuts_nothing() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(&cluster, "choosy", &["--replicas", "1", "-p", "8095:80", "whoami"])?;
    let ingress = SocketAddrV4::new(cluster.record.nodes.last().context("no node")?.ip, 8095);
    let pinned_task = cluster.client().run(|| answering_task(ingress))?;
    // With one task, every slow connection goes to it; the second task is added afterwards.
    let slow = hold(&cluster, ingress)?;
    cluster.docker()?.run(&["service", "scale", "--detach", "choosy=2"])?;
    cluster.wait_running(service.name(), 2, PATIENCE)?;
    let tasks_before = running(&cluster, service.name())?;
    eventually("both tasks in selection", PATIENCE, || {
        let seen = answers(&cluster, ingress, 4)?;
        ensure!(seen.len() == 2, "answers from {seen:?}");
        Ok(())
    })?;

    cluster.docker()?.run(&[
        "service",
        "update",
        "--detach",
        "--label-add",
        "mesh.lb.policy=least-connections",
        service.name(),
    ])?;
    let begun = Instant::now();
    in_force(&cluster, service.name(), "least-connections", Duration::from_secs(1))?;
    eprintln!("in force everywhere {:?} after the command's return", begun.elapsed());
    let seen = answers(&cluster, ingress, 100)?;
    ensure!(!seen.contains(&pinned_task), "new connections went to the pinned task: {seen:?}");
    for (number, stream) in slow.into_iter().enumerate() {
        let answer = finish(&cluster, stream).with_context(|| format!("slow connection {number} was cut"))?;
        ensure!(answer.status == 200, "slow connection {number} got {}", answer.status);
    }
    ensure!(running(&cluster, service.name())? == tasks_before, "the switch replaced tasks");
    Ok(())
}

#[test]
fn a_node_prefers_its_own_tasks_while_it_has_any() -> Result<()> {
    let cluster = cluster()?;
    let prefers = ["--label", "mesh.lb.prefer-local=true", "--env", "WHOAMI_TASK={{.Node.Hostname}}"];
    let words = [&["--mode", "global", "-p", "8094:80"][..], &prefers, &["whoami"]].concat();
    let _service = Service::create(&cluster, "homely", &words)?;
    for node in &cluster.record.nodes {
        let own = BTreeSet::from([node.name.clone()]);
        let server = SocketAddrV4::new(node.ip, 8094);
        eventually(&format!("{} to ask its own task only", node.name), PATIENCE, || {
            let seen = answers(&cluster, server, 20)?;
            ensure!(seen == own, "answers from {seen:?}");
            Ok(())
        })?;
    }
    let [homeless, others @ ..] = &cluster.record.nodes[..] else { anyhow::bail!("no node") };
    let elsewhere = format!("node.hostname!={}", homeless.name);
    cluster.docker()?.run(&["service", "update", "--detach", "--constraint-add", &elsewhere, "homely"])?;
    let others: BTreeSet<String> = others.iter().map(|node| node.name.clone()).collect();
    eventually("a node without a task to ask the others'", PATIENCE, || {
        let seen = answers(&cluster, SocketAddrV4::new(homeless.ip, 8094), 20)?;
        ensure!(seen == others, "expected {others:?}, saw {seen:?}");
        Ok(())
    })
}

#[test]
fn an_unknown_policy_is_refused_with_the_known_ones() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(&cluster, "strict", &["--replicas", "1", "-p", "8096:80", "whoami"])?;
    let refusal = cluster.docker()?.refused(&[
        "service",
        "update",
        "--label-add",
        "mesh.lb.policy=fastest",
        service.name(),
    ])?;
    ensure!(
        refusal.message.contains("fastest")
            && refusal.message.contains("round-robin, random, least-connections"),
        "expected the bad value and the good ones, saw: {}",
        refusal.message
    );
    let labels = cluster.docker()?.run(&[
        "service",
        "inspect",
        "--format",
        "{{json .Spec.Labels}}",
        service.name(),
    ])?;
    ensure!(!labels.contains("mesh.lb.policy"), "a refused label was stored: {labels}");
    Ok(())
}

#[test]
fn a_switch_is_live_everywhere_within_200_ms_and_cuts_no_connection() -> Result<()> {
    let cluster = cluster()?;
    let service =
        Service::create(&cluster, "swift", &["--replicas", "3", "-p", "8097:80", "-p", "8098:7", "whoami"])?;
    let ingress = SocketAddrV4::new(cluster.record.nodes.last().context("no node")?.ip, 8098);
    let mut open = cluster.client().run(|| {
        (0..1000)
            .map(|_| Ok(TcpStream::connect_timeout(&ingress.into(), PATIENCE)?))
            .collect::<Result<Vec<TcpStream>>>()
    })?;
    for policy in ["least-load", "source-hash", "random", "round-robin"] {
        let before = propagated(&cluster)?;
        let label = format!("mesh.lb.policy={policy}");
        cluster.docker()?.run(&["service", "update", "--detach", "--label-add", &label, service.name()])?;
        in_force(&cluster, service.name(), policy, Duration::from_secs(1))?;
        // A node counts a table a moment after the table is in force.
        let after = eventually("each node counts the table", Duration::from_secs(5), || {
            let now = propagated(&cluster)?;
            let are_counted = before.iter().zip(&now).all(|((_, before), (_, now))| now.all > before.all);
            ensure!(are_counted, "{policy}: a node has not counted the table");
            Ok(now)
        })?;
        for ((node, before), (_, after)) in before.iter().zip(after) {
            let (slow, all) = (after.slow - before.slow, after.all - before.all);
            ensure!(slow == 0.0, "{policy} on {node}: {slow} of {all} tables took over 200 ms");
        }
    }
    for (number, stream) in open.iter_mut().enumerate() {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"?").with_context(|| format!("connection {number} was cut"))?;
        stream.read_exact(&mut [0]).with_context(|| format!("connection {number} was cut"))?;
    }
    Ok(())
}

/// The tables that a node has applied since its start.
struct Propagated {
    all: f64,
    /// Those that took more than 200 ms from their commit.
    slow: f64,
}

/// `mesh_config_propagation_seconds` of each node.
fn propagated(cluster: &Cluster) -> Result<Vec<(String, Propagated)>> {
    let of = |node: &mesh_lab::record::NodeRecord| {
        let text = cluster.metrics(node)?;
        let one =
            |name: &str, labels: &[(&str, &str)]| -> f64 { samples(&text, name, labels).into_iter().sum() };
        let all = one("mesh_config_propagation_seconds_count", &[]);
        let quick = one("mesh_config_propagation_seconds_bucket", &[("le", "0.2")]);
        Ok((node.name.clone(), Propagated { all, slow: all - quick }))
    };
    cluster.record.nodes.iter().map(of).collect()
}

#[test]
fn a_loaded_task_gets_little_and_recovers() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(
        &cluster,
        "weary",
        &[
            "--replicas",
            "4",
            "--limit-cpu",
            "0.3",
            "--label",
            "mesh.lb.policy=least-load",
            "-p",
            "8099:80",
            "whoami",
        ],
    )?;
    let ingress = SocketAddrV4::new(cluster.record.nodes.last().context("no node")?.ip, 8099);
    // At first every task is known and idle.
    eventually("all four tasks", PATIENCE, || {
        let seen = answers(&cluster, ingress, 40)?;
        ensure!(seen.len() == 4, "answers from {seen:?}");
        Ok(())
    })?;
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let burning = scope.spawn(|| {
            let burnt = cluster.client().run(|| http::get(ingress, "/burn?ms=8000", PATIENCE))?;
            let page: serde_json::Value = serde_json::from_slice(&burnt.body)?;
            page["task"].as_str().map(str::to_owned).context("no task in the page")
        });
        std::thread::sleep(Duration::from_secs(3));
        let during = shares(&cluster, ingress, 300)?;
        ensure!(begun.elapsed() < Duration::from_secs(8), "the requests took longer than the burn");
        let tired = burning.join().map_err(|_| anyhow::anyhow!("the burner panicked"))??;
        let share = during.get(&tired).copied().unwrap_or(0);
        ensure!(share < 30, "{tired} burns and still got {share} of 300: {during:?}");
        eventually("the share of the task that has rested", Duration::from_secs(10), || {
            let after = shares(&cluster, ingress, 200)?;
            let share = after.get(&tired).copied().unwrap_or(0);
            ensure!(share >= 25, "{tired} gets {share} of 200 after its burn: {after:?}");
            Ok(())
        })
    })?;
    drop(service);
    Ok(())
}

/// How many of the requests each task answered.
fn shares(cluster: &Cluster, server: SocketAddrV4, requests: usize) -> Result<BTreeMap<String, usize>> {
    cluster.client().run(|| {
        let mut shares = BTreeMap::new();
        for _ in 0..requests {
            *shares.entry(answering_task(server)?).or_default() += 1;
        }
        Ok(shares)
    })
}

/// Opens connections whose answers come late.
fn hold(cluster: &Cluster, server: SocketAddrV4) -> Result<Vec<TcpStream>> {
    cluster.client().run(|| {
        (0..PINNED).map(|_| http::open(server, "/slow?ms=15000", http::DEADLINE)).collect::<Result<Vec<_>>>()
    })
}

/// Reads a late answer to its end.
fn finish(cluster: &Cluster, mut stream: TcpStream) -> Result<http::Response> {
    cluster.client().run(|| {
        stream.set_read_timeout(Some(Duration::from_secs(40)))?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        http::parse(&bytes)
    })
}

fn answers(cluster: &Cluster, server: SocketAddrV4, requests: usize) -> Result<BTreeSet<String>> {
    cluster.client().run(|| (0..requests).map(|_| answering_task(server)).collect())
}

fn in_force(cluster: &Cluster, service: &str, policy: &str, within: Duration) -> Result<()> {
    eventually(&format!("{policy} in force on every node"), within, || {
        for node in &cluster.record.nodes {
            let labels = [("service", service), ("policy", policy)];
            let seen = samples(&cluster.metrics(node)?, "mesh_lb_policy_info", &labels);
            // One sample for each published port.
            ensure!(!seen.is_empty() && seen == vec![1.0; seen.len()], "{} has {seen:?}", node.name);
        }
        Ok(())
    })
}

fn running(cluster: &Cluster, service: &str) -> Result<BTreeSet<String>> {
    let rows = cluster.docker()?.tasks(service)?;
    Ok(rows.into_iter().filter(TaskRow::is_running).map(|row| row.id).collect())
}
