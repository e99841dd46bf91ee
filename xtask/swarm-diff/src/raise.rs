//! Starts either cluster in a lab: mesh as the lab starts it, or a Swarm in a bare lab.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_checkout::workspace;
use mesh_lab::artifacts;
use mesh_lab::cluster::{Docker, eventually};
use mesh_lab::layout::{LabName, Layout};
use mesh_lab::{Datapath, Lab, UpOptions};

use super::Side;
use super::side::Cluster;

/// The deadline for an engine to reload its configuration, and for a node to become ready.
const LIMIT: Duration = Duration::from_secs(30);
const NODES: u8 = 3;

/// Starts the cluster, empty.
pub(super) fn raise(side: Side, directory: &Path, keep: bool) -> Result<(Cluster, Layout)> {
    let layout = Layout::new(format!("diff-{}", side.name()).parse::<LabName>()?);
    let lab = match Lab::open(&layout) {
        Ok(lab) if keep => lab,
        _ => up(side, &layout)?,
    };
    let sockets: BTreeMap<String, PathBuf> = lab
        .record()
        .nodes
        .iter()
        .filter_map(|entry| {
            let node = layout.node_named(&entry.name)?;
            let socket = if side == Side::Mesh { node.mesh_socket() } else { node.engine_socket() };
            Some((entry.name.clone(), socket))
        })
        .collect();
    let home = workspace::target_dir().join("swarm-diff").join("home");
    fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
    Ok((Cluster { sockets, files: directory.join("files"), home }, layout))
}

/// Removes the cluster's lab.
pub(super) fn lower(layout: &Layout) -> Result<()> {
    Lab::down(layout)
}

fn up(side: Side, layout: &Layout) -> Result<Lab> {
    let bare = side == Side::Swarm;
    let binaries = if bare { artifacts::build_whoami()? } else { artifacts::build()? };
    let options = UpOptions { nodes: NODES, bare, ..UpOptions::usual(Datapath::Tc) };
    let lab = Lab::up(layout, &options, &binaries)?;
    if bare {
        join_into_swarm(&lab)?;
    }
    Ok(lab)
}

/// Makes the first node a manager and the others its workers.
fn join_into_swarm(lab: &Lab) -> Result<()> {
    let nodes = &lab.record().nodes;
    let (first, others) = nodes.split_first().context("the lab has no nodes")?;
    for entry in nodes {
        give_up_live_restore(lab, &entry.name, entry.pids.dockerd)?;
    }
    let manager = Docker::towards(&first.docker_host);
    manager.run(&["swarm", "init", "--advertise-addr", &first.ip.to_string()])?;
    let token = manager.run(&["swarm", "join-token", "--quiet", "worker"])?;
    for other in others {
        let address = format!("{}:2377", first.ip);
        let joins =
            ["swarm", "join", "--advertise-addr", &other.ip.to_string(), "--token", token.trim(), &address];
        Docker::towards(&other.docker_host).run(&joins)?;
    }
    eventually("every node ready in the Swarm", LIMIT, || {
        let listed = manager.run(&["node", "ls", "--format", "{{.Status}}"])?;
        ensure!(listed.lines().filter(|status| *status == "Ready").count() == nodes.len(), "saw: {listed}");
        Ok(())
    })
}

/// Turns live-restore off, which the lab's engines use: a Swarm refuses it.
fn give_up_live_restore(lab: &Lab, name: &str, pid: Option<u32>) -> Result<()> {
    let node = lab.node(name)?;
    fs::write(node.engine_config(), "{\"live-restore\": false}\n")
        .with_context(|| format!("configure the engine of {name}"))?;
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    let pid = pid.with_context(|| format!("{name} runs no engine"))?;
    rustix::process::kill_process(pid, rustix::process::Signal::HUP)
        .with_context(|| format!("have the engine of {name} read its configuration again"))?;
    let engine = Docker::towards(&format!("unix://{}", node.engine_socket().display()));
    eventually("an engine without live-restore", LIMIT, || {
        let enabled = engine.run(&["info", "--format", "{{.LiveRestoreEnabled}}"])?;
        ensure!(enabled.trim() == "false", "live-restore is {enabled}");
        Ok(())
    })
}
