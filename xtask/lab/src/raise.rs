//! Starts the parts of a lab in order, and restarts them.
//!
//! Nodes are made side by side. etcd and control wait only for each other; images are loaded into
//! an engine while other nodes still start; agents come last, with the token that the first
//! manager's control wrote.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use super::component::{Component, command_line, unix_url};
use super::daemon;
use super::etcd_keys;
use super::layout::{CLIENT_IP, Layout, NodeLayout};
use super::network;
use super::record::{ClientRecord, NodeRecord, Pids, Record};
use super::{Datapath, UpOptions, clock, images, machine, ready};
use crate::artifacts::Binaries;

/// The cluster's key file in a control plane's directory.
const KEY_FILE: &str = "key";

/// Makes the lab that `record`, made by [`plan`], describes; returns when all of it is ready. Adds
/// each started process to the record, also when another one fails.
pub(super) fn raise(
    layout: &Layout,
    options: &UpOptions,
    record: &mut Record,
    binaries: &Binaries,
) -> Result<()> {
    let nodes: Vec<NodeLayout> = (1..=options.nodes).map(|number| layout.node(number)).collect();
    machine::mount_run_dir(layout)?;
    network::build_middle(layout, needs_pass_program(record))?;
    for node in &nodes {
        if options.small_disks {
            machine::mount_small_disks(node)?;
        }
        build_machine(node, record)?;
    }
    if let Some(directory) = &record.clocks {
        record.nodes.iter().try_for_each(|node| clock::set(directory, &node.name, 0))?;
    }
    let archive = thread::scope(|scope| {
        let archive = scope.spawn(|| images::make(binaries, &layout.name().to_string()));
        start_all(Component::Dockerd, &nodes, record, binaries)?;
        join(archive.join())
    })?;
    thread::scope(|scope| {
        let loads: Vec<_> = nodes.iter().map(|node| scope.spawn(|| images::load(node, &archive))).collect();
        if options.empty {
            let managers = &nodes[..usize::from(options.managers)];
            start_all(Component::Control, managers, record, binaries)?;
        } else {
            start_control_plane(&nodes, options, record, binaries)?;
        }
        loads.into_iter().try_for_each(|load| join(load.join()))
    })?;
    if !options.bare {
        for node in nodes.iter().filter(|_| !options.empty) {
            hand_out_token(node, &nodes[0], record)?;
        }
        start_all(Component::Agent, &nodes, record, binaries)?;
    }
    Ok(())
}

/// Starts one daemon that is not running.
pub(super) fn restart(
    component: Component,
    node: &NodeLayout,
    record: &mut Record,
    binaries: &Binaries,
) -> Result<()> {
    let name = node.name();
    let entry = record.node_mut(&name)?;
    if component.managers_only() && !entry.manager {
        bail!("{name} is not a manager, so it has no {component}");
    }
    if entry.pids.get(component).is_some_and(|pid| daemon::is_alive(component, node, pid)) {
        bail!("{component} runs on {name} already; next: cargo xtask lab kill {name} {component}");
    }
    start_all(component, std::slice::from_ref(node), record, binaries)
}

/// Boots a node whose power was cut: its disk is as it was, everything else is lost. Starts the
/// daemons that ran on it before.
pub(super) fn reboot(node: &NodeLayout, record: &mut Record, binaries: &Binaries) -> Result<()> {
    let name = node.name();
    let pids = record.node_mut(&name)?.pids;
    if Component::ALL.iter().any(|c| pids.get(*c).is_some_and(|pid| daemon::is_alive(*c, node, pid))) {
        bail!("{name} runs; next: cargo xtask lab kill {name} all, or start a single part of it");
    }
    machine::remove(node)?;
    network::remove_node(node)?;
    build_machine(node, record)?;
    let installed = Component::ALL.into_iter().filter(|component| node.log_file(component).exists());
    for component in installed {
        start_all(component, std::slice::from_ref(node), record, binaries)?;
    }
    Ok(())
}

/// The record of a lab in which nothing runs yet.
pub(super) fn plan(layout: &Layout, options: &UpOptions) -> Record {
    let nodes: Vec<NodeRecord> = (1..=options.nodes)
        .map(|number| {
            let node = layout.node(number);
            NodeRecord {
                name: node.name(),
                netns: node.netns(),
                ip: node.ip(),
                manager: number <= options.managers,
                docker_host: unix_url(&node.engine_socket()),
                mesh_host: unix_url(&node.mesh_socket()),
                metrics: format!("http://{}:9464/metrics", node.ip()),
                datapath: options
                    .node_datapaths
                    .get(&node.name())
                    .map(|datapath| datapath.as_str().to_owned()),
                pids: Pids::default(),
            }
        })
        .collect();
    Record {
        client: ClientRecord { netns: layout.client_netns(), ip: CLIENT_IP },
        etcd: nodes
            .iter()
            .filter(|n| n.manager && !options.empty)
            .map(|n| format!("https://{}:2379", n.ip))
            .collect(),
        nodes,
        datapath: options.datapath.as_str().to_owned(),
        empty: options.empty,
        clocks: options.turnable_clock.then(|| clock::directory(layout)),
        emulated: ready::is_emulated(),
    }
}

fn build_machine(node: &NodeLayout, record: &Record) -> Result<()> {
    network::build_node(node, needs_pass_program(record))
        .and_then(|()| machine::build(node))
        .with_context(|| format!("make {}", node.name()))
}

fn needs_pass_program(record: &Record) -> bool {
    record.nodes.iter().any(|node| record.datapath_of(node) == Datapath::Xdp.as_str())
}

fn start_control_plane(
    nodes: &[NodeLayout],
    options: &UpOptions,
    record: &mut Record,
    binaries: &Binaries,
) -> Result<()> {
    let managers = &nodes[..usize::from(options.managers)];
    etcd_keys::hand_out(managers).context("make etcd's certificates")?;
    start_all(Component::Etcd, managers, record, binaries)?;
    if options.bare {
        return Ok(());
    }
    // The first one makes the cluster and its key, which the others get as an administrator would
    // bring it to them.
    let (first, others) = managers.split_at(1);
    start_all(Component::Control, first, record, binaries)?;
    for other in others {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(other.control_dir())
            .context("make a control plane's directory")?;
        copy_secret(&first[0].control_dir().join(KEY_FILE), &other.control_dir().join(KEY_FILE))?;
    }
    start_all(Component::Control, others, record, binaries)
}

/// Starts a component on all these nodes, then waits until each one is ready. All are started
/// before the first wait, as members of etcd wait for each other.
fn start_all(
    component: Component,
    nodes: &[NodeLayout],
    record: &mut Record,
    binaries: &Binaries,
) -> Result<()> {
    let mut started = Vec::new();
    for node in nodes {
        let line = command_line(component, node, record, binaries);
        let daemon = daemon::start(component, node, &line)?;
        record.node_mut(&node.name())?.pids.set(component, Some(daemon.pid()));
        started.push((node, daemon));
    }
    started.iter_mut().try_for_each(|(node, daemon)| ready::wait(daemon, component, node))
}

/// Copies the node's join token from the first manager's control, as an administrator would.
fn hand_out_token(node: &NodeLayout, first: &NodeLayout, record: &Record) -> Result<()> {
    let role = if record.node(&node.name()).is_some_and(|n| n.manager) { "manager" } else { "worker" };
    let from = first.control_dir().join(format!("join-token-{role}"));
    copy_secret(&from, &node.join_token())
}

fn copy_secret(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .and_then(|_| fs::set_permissions(to, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

fn join<T>(joined: thread::Result<Result<T>>) -> Result<T> {
    joined.unwrap_or_else(|_| Err(anyhow!("a thread of the lab panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_nodes_are_managers() {
        let layout = Layout::new("x".parse().unwrap());
        let options = UpOptions { nodes: 4, managers: 3, ..UpOptions::usual(Datapath::Xdp) };
        let record = plan(&layout, &options);
        let managers: Vec<bool> = record.nodes.iter().map(|n| n.manager).collect();
        assert_eq!(managers, [true, true, true, false], "which nodes are managers");
        let etcd = ["https://10.77.0.11:2379", "https://10.77.0.12:2379", "https://10.77.0.13:2379"];
        assert_eq!(record.etcd, etcd, "an etcd member for each manager");
    }
}
