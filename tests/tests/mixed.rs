//! Tests of a cluster with one node in userspace among nodes with kernel programs: every node
//! reaches every task, over TCP and UDP.
//!
//! Runs in a lab of its own: `cargo xtask lab up --datapath tc --node-datapath node-3=userspace`.
#![cfg(feature = "cluster")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, eventually};
use mesh_lab::record::NodeRecord;
use mesh_tests::{PATIENCE, Service, answering_task, cluster, datagram_task};

/// Makes tasks answer with their node's name instead of their own.
const TELLS_NODE: [&str; 2] = ["--env", "WHOAMI_TASK={{.Node.Hostname}}"];
const ROUNDS: usize = 5;

/// Finds out which task answers.
type Ask = fn(SocketAddrV4) -> Result<String>;

fn mixed_cluster() -> Result<Cluster> {
    let cluster = cluster()?;
    ensure!(
        cluster.record.is_mixed(),
        "all nodes have one datapath; next: cargo xtask lab up --datapath tc --node-datapath node-3=userspace"
    );
    Ok(cluster)
}

/// How often each node's task answered.
fn answers(
    cluster: &Cluster,
    server: SocketAddrV4,
    ask: fn(SocketAddrV4) -> Result<String>,
) -> Result<BTreeMap<String, usize>> {
    let requests = ROUNDS * cluster.record.nodes.len();
    cluster.client().run(|| {
        let mut answers = BTreeMap::new();
        for _ in 0..requests {
            *answers.entry(ask(server)?).or_default() += 1;
        }
        Ok(answers)
    })
}

#[test]
fn every_node_spreads_over_the_tasks_of_all_nodes() -> Result<()> {
    let cluster = mixed_cluster()?;
    let words =
        ["--mode", "global", "-p", "8170:80", "-p", "8171:9/udp", TELLS_NODE[0], TELLS_NODE[1], "whoami"];
    let _service = Service::create(&cluster, "mixture", &words)?;
    let even: BTreeMap<String, usize> =
        cluster.record.nodes.iter().map(|node| (node.name.clone(), ROUNDS)).collect();
    let ways: [(u16, Ask, &str); 2] = [(8170, answering_task, "TCP"), (8171, datagram_task, "UDP")];
    for (port, ask, over) in ways {
        for node in &cluster.record.nodes {
            let server = SocketAddrV4::new(node.ip, port);
            eventually(&format!("an even share over {over} by {}", node.name), PATIENCE, || {
                let seen = answers(&cluster, server, ask)?;
                ensure!(seen == even, "expected {even:?}, saw {seen:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_single_task_is_reached_from_the_other_kind_of_node() -> Result<()> {
    let cluster = mixed_cluster()?;
    for node in &cluster.record.nodes {
        let constraint = format!("node.hostname=={}", node.name);
        let words = [
            "--constraint",
            &constraint,
            "-p",
            "8172:80",
            "-p",
            "8173:9/udp",
            TELLS_NODE[0],
            TELLS_NODE[1],
            "whoami",
        ];
        let _service = Service::create(&cluster, "lonely", &words)?;
        for ingress in &cluster.record.nodes {
            let (tcp, udp) = (SocketAddrV4::new(ingress.ip, 8172), SocketAddrV4::new(ingress.ip, 8173));
            let what = format!("the task on {} through {}", node.name, ingress.name);
            eventually(&what, PATIENCE, || {
                let seen = cluster.client().run(|| Ok((answering_task(tcp)?, datagram_task(udp)?)))?;
                ensure!(seen == (node.name.clone(), node.name.clone()), "answers from {seen:?}");
                check_client(&cluster, node, ingress, tcp)
            })?;
        }
    }
    Ok(())
}

/// Between nodes with programs the task sees the client; if either is in userspace, it sees a node.
fn check_client(
    cluster: &Cluster,
    task: &NodeRecord,
    ingress: &NodeRecord,
    server: SocketAddrV4,
) -> Result<()> {
    let response = cluster.client().run(|| http::get(server, "/", http::DEADLINE))?;
    let page: serde_json::Value = serde_json::from_slice(&response.body)?;
    let client: SocketAddr = page["client"].as_str().context("no client in the page")?.parse()?;
    let in_userspace = [task, ingress].iter().any(|node| cluster.record.datapath_of(node) == "userspace");
    let is_client = client.ip().to_canonical() == IpAddr::V4(cluster.record.client.ip);
    ensure!(is_client != in_userspace, "the task sees {client}, userspace on the way: {in_userspace}");
    Ok(())
}
