//! The policy is the operator's, and is switched while traffic flows.
#![cfg(feature = "cluster")]

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::{PATIENCE, Service, answering_task, cluster};
use xtask::client::http;
use xtask::cluster::{Cluster, TaskRow, eventually, samples};

/// Connections that pin a backend.
const PINNED: usize = 50;

#[test]
fn least_connections_avoids_a_pinned_backend_and_cuts_nothing() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(&cluster, "choosy", &["--replicas", "1", "-p", "8095:80", "whoami"])?;
    let ingress = SocketAddrV4::new(cluster.record.nodes.last().context("no node")?.ip, 8095);
    let pinned_task = cluster.client().run(|| answering_task(ingress))?;
    // With one task, every slow connection is that task's; the second task comes afterwards.
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
fn an_unknown_policy_is_refused_with_the_good_ones() -> Result<()> {
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

/// Opens connections whose answers come late.
fn hold(cluster: &Cluster, server: SocketAddrV4) -> Result<Vec<TcpStream>> {
    cluster.client().run(|| {
        (0..PINNED).map(|_| http::open(server, "/slow?ms=25000", http::DEADLINE)).collect::<Result<Vec<_>>>()
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
            ensure!(seen == [1.0], "{} has {seen:?}", node.name);
        }
        Ok(())
    })
}

fn running(cluster: &Cluster, service: &str) -> Result<BTreeSet<String>> {
    let rows = cluster.docker()?.tasks(service)?;
    Ok(rows.into_iter().filter(TaskRow::is_running).map(|row| row.id).collect())
}
