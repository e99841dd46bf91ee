//! Containers that are no tasks: the cluster's networks refuse them.

use anyhow::{Result, ensure};
use mesh_lab::cluster::Docker;
use mesh_tests::cluster;

use crate::shop::Network;

#[test]
fn a_container_is_refused_by_other_networks() -> Result<()> {
    let cluster = cluster()?;
    let network = Network::create(&cluster, "closed", &[])?;
    for node in &cluster.record.nodes {
        let docker = Docker::towards(&node.mesh_host);
        let words = ["run", "--rm", "--network", network.name(), "busybox", "true"];
        let refusal = docker.refused(&words)?;
        ensure!(
            refusal.message.contains("not manually attachable"),
            "{}: expected `not manually attachable`, saw: {}",
            node.name,
            refusal.message
        );
    }
    Ok(())
}
