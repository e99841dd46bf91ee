//! Tests that a client on the nodes' network without a certificate can neither read nor change
//! etcd.
#![cfg(feature = "cluster")]

use std::process::Output;

use anyhow::{Context, Result, ensure};
use mesh_lab::Lab;
use mesh_lab::cluster::Cluster;
use mesh_tests::{cluster, lab};

/// A key that every cluster has in etcd.
const CLUSTER_RECORD: &str = "/mesh/v1/cluster";

#[test]
fn the_nodes_network_gets_nothing_from_etcd() -> Result<()> {
    let cluster = cluster()?;
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?;
    let get = ["etcdctl", "get", CLUSTER_RECORD, "--print-value-only"];
    let own = lab::on_machine(&cluster, &manager.name, &get)?;
    ensure!(own.contains("ca_key"), "the manager's own etcdctl doesn't see the cluster's record: {own}");

    for node in cluster.record.nodes.iter().filter(|node| node.manager) {
        for (port, what) in [(2379, "clients"), (2380, "peers")] {
            let at = format!("{}:{port}", node.ip);
            for words in [
                format!("get {CLUSTER_RECORD} --endpoints http://{at}"),
                format!("put {CLUSTER_RECORD} x --endpoints http://{at}"),
                format!("get {CLUSTER_RECORD} --endpoints https://{at} --insecure-skip-tls-verify"),
                format!("put {CLUSTER_RECORD} x --endpoints https://{at} --insecure-skip-tls-verify"),
                format!("member list --endpoints https://{at} --insecure-skip-tls-verify"),
            ] {
                let output = etcdctl(&cluster, &words)?;
                ensure!(
                    !output.status.success() && output.stdout.is_empty(),
                    "etcdctl {words} on the port for {what} was served: {output:?}"
                );
            }
        }
    }
    let after = lab::on_machine(&cluster, &manager.name, &get)?;
    ensure!(after == own, "the record changed: {after}");
    Ok(())
}

/// etcdctl in the client's namespace, without a certificate.
fn etcdctl(cluster: &Cluster, words: &str) -> Result<Output> {
    let limits = ["--command-timeout=3s", "--dial-timeout=2s"];
    let words = ["etcdctl"].into_iter().chain(words.split(' ')).chain(limits);
    let mut command =
        Lab::open(&cluster.layout)?.command("client", &words.map(str::to_owned).collect::<Vec<_>>())?;
    command.output().context("run etcdctl")
}
