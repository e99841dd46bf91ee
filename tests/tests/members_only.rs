//! Tests that only members can use the tunnel: packets that an outsider forges, without seeing any
//! of the members', reach no task.
#![cfg(feature = "cluster")]

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use mesh_lab::client::forged::{Forged, Forger, VNI_DIRECT, VNI_REPLY, VNI_TASKS};
use mesh_lab::cluster::{Cluster, Docker, eventually, samples};
use mesh_lab::record::NodeRecord;
use mesh_tests::{PATIENCE, Service, cluster};

/// The source of the forged packets inside the tunnel.
const STRANGER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 5), 40_000);

fn dropped(cluster: &Cluster, node: &NodeRecord, reason: &str) -> Result<f64> {
    let found = samples(&cluster.metrics(node)?, "mesh_dropped_packets_total", &[("reason", reason)]);
    Ok(found.iter().sum())
}

#[test]
fn forged_tunnel_packets_are_refused_and_counted() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    let args = ["--replicas", "1", "-p", "8093:80", "--label", "mesh.lb.allow=10.99.0.0/16", "whoami"];
    let service = Service::create(&cluster, "closed", &args)?;
    let (node, container) = cluster
        .containers(service.name())?
        .into_iter()
        .find_map(|(node, containers)| Some((node, containers.first()?.0.clone())))
        .context("a task")?;
    let node = cluster.node(&node)?;
    let format = "{{(index .NetworkSettings.Networks \"mesh\").IPAddress}}";
    let address = Docker::towards(&node.mesh_host).run(&["inspect", "--format", format, &container])?;
    let member = cluster.record.nodes.iter().find(|other| other.name != node.name).context("another node")?;
    let destination = SocketAddrV4::new(address.trim().parse()?, 80);
    let forge = |vni, cookie| -> Result<()> {
        let packet = Forged { member: member.ip, node: node.ip, vni, cookie, source: STRANGER, destination };
        cluster.client().run(|| Forger::open()?.send(&packet))
    };
    eventually("cookies to be demanded", PATIENCE, || {
        let before = dropped(&cluster, node, "bad_cookie")?;
        forge(VNI_REPLY, 0)?;
        ensure!(dropped(&cluster, node, "bad_cookie")? > before, "a packet without one is accepted");
        Ok(())
    })?;
    let before = dropped(&cluster, node, "bad_cookie")?;
    let mut sent = 0.0;
    let backends = (1..=64_u32).flat_map(|id| [id, VNI_DIRECT | id]);
    for vni in backends.chain([VNI_TASKS, VNI_REPLY]) {
        forge(vni, 0x1234_5678)?;
        sent += 1.0;
    }
    eventually("every forged packet to be counted", PATIENCE, || {
        let refused = dropped(&cluster, node, "bad_cookie")? - before;
        ensure!(refused >= sent, "{sent} sent, {refused} refused");
        Ok(())
    })
}
