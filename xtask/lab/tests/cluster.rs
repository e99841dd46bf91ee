//! Two empty machines become a cluster by Swarm's own two commands, with an etcd that the manager
//! runs, and it outlives the violent end of each part.
//!
//! Needs root, cgroups, the Docker engine and etcd; `cargo xtask test lab` runs it where they are
//! available.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::artifacts::{self, Binaries};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_lab::component::Component;
use mesh_lab::layout::Layout;
use mesh_lab::{Datapath, Lab, Part, UpOptions};

const NAME: &str = "emptytest";
/// How long a state may take to come.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_cluster_is_made_by_two_commands() -> Result<()> {
    let layout = Layout::new(NAME.parse()?);
    let binaries = artifacts::build()?;
    let options = UpOptions { nodes: 2, empty: true, ..UpOptions::usual(Datapath::Tc) };
    let mut lab = Lab::up(&layout, &options, &binaries)?;
    let cluster = Cluster::open(layout.clone())?;
    is_refused_where_no_manager_is(&cluster)
        .and_then(|()| is_made(&cluster))
        .and_then(|()| serves(&cluster))
        .and_then(|()| etcd_serves_nobody_else(&lab))
        .and_then(|()| outlives_its_parts(&mut lab, &cluster, &binaries))
        .context("the lab is kept for inspection; then: cargo xtask lab down --name emptytest")?;
    Lab::down(&layout)
}

fn docker(cluster: &Cluster, node: &str) -> Result<Docker> {
    Ok(Docker::towards(&cluster.node(node)?.mesh_host))
}

fn is_refused_where_no_manager_is(cluster: &Cluster) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let state = docker(cluster, node)?.run(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
        ensure!(state.trim() == "inactive", "{node} is {state}");
    }
    let refused = docker(cluster, "node-2")?.refused(&["swarm", "init"])?;
    ensure!(refused.message.contains("no manager waits for docker swarm init"), "{refused:?}");
    let bad = docker(cluster, "node-1")?.refused(&["swarm", "init", "--advertise-addr", "eth77"])?;
    ensure!(bad.message.contains("advertise address must be a non-zero IP address"), "{bad:?}");
    let bad = docker(cluster, "node-1")?.refused(&["swarm", "init", "--default-addr-pool", "127.0.0.0/8"])?;
    ensure!(bad.message.contains("127.0.0.0/8"), "{bad:?}");
    Ok(())
}

fn is_made(cluster: &Cluster) -> Result<()> {
    let first = docker(cluster, "node-1")?;
    let words =
        ["swarm", "init", "--default-addr-pool", "10.200.0.0/16", "--default-addr-pool-mask-length", "26"];
    let said = first.run(&[&words[..], &["--cert-expiry", "48h"]].concat())?;
    ensure!(said.starts_with("Swarm initialized: current node ("), "docker swarm init said: {said}");
    let join = said.lines().map(str::trim).find(|line| line.starts_with("docker swarm join "));
    let join = join.with_context(|| format!("no command to join in: {said}"))?;
    ensure!(join.ends_with("10.77.0.11:2377"), "the command: {join}");
    let words: Vec<&str> = join.split_whitespace().skip(1).collect();
    let joined = docker(cluster, "node-2")?.run(&words)?;
    ensure!(joined.trim() == "This node joined a swarm as a worker.", "docker swarm join said: {joined}");
    let nodes = first.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"])?;
    ensure!(nodes.lines().any(|row| row == "node-1 Ready Leader"), "nodes: {nodes}");
    let info = first.run(&["info"])?;
    for expected in ["Expiry Duration: 2 days", "Default Address Pool: 10.200.0.0/16", "SubnetSize: 26"] {
        ensure!(info.contains(expected), "expected {expected:?} in: {info}");
    }
    let again = first.refused(&["swarm", "init"])?;
    ensure!(again.message.contains("This node is already part of a swarm."), "{again:?}");
    let leaves = first.refused(&["swarm", "leave"])?;
    ensure!(leaves.message.contains("Removing the last manager erases"), "{leaves:?}");
    Ok(())
}

fn serves(cluster: &Cluster) -> Result<()> {
    docker(cluster, "node-1")?.run(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--replicas",
        "2",
        "-p",
        "8080:80",
        "whoami",
    ])?;
    cluster.wait_running("web", 2, PATIENCE)?;
    eventually("every node to answer", PATIENCE, || answers(cluster))
}

fn answers(cluster: &Cluster) -> Result<()> {
    for server in cluster.everywhere(8080) {
        let answer = cluster.client().run(|| http::get(server, "/", http::DEADLINE))?;
        ensure!(answer.status == 200, "{server} answered {}", answer.status);
    }
    Ok(())
}

/// Clients' port is on loopback, the members' port demands a member's certificate.
fn etcd_serves_nobody_else(lab: &Lab) -> Result<()> {
    let run = |place: &str, words: &[&str]| -> Result<(bool, String)> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let output = lab.command(place, &words)?.output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let (_, listening) = run("node-1", &["ss", "-Hltn"])?;
    ensure!(listening.contains("127.0.0.1:4802"), "listening: {listening}");
    ensure!(!listening.contains("0.0.0.0:4802") && !listening.contains("*:4802"), "listening: {listening}");
    for (place, url) in [
        ("client", "https://10.77.0.11:4803/version"),
        ("client", "http://10.77.0.11:4803/version"),
        ("client", "https://10.77.0.11:4802/version"),
        ("node-1", "https://127.0.0.1:4802/version"),
        ("node-1", "http://127.0.0.1:4802/version"),
    ] {
        let (answered, said) = run(place, &["curl", "-sk", "--max-time", "5", url])?;
        ensure!(!answered, "{url} answered somebody without a certificate: {said}");
    }
    Ok(())
}

/// The manager and its etcd are killed; the cluster is what it was.
fn outlives_its_parts(lab: &mut Lab, cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let first = docker(cluster, "node-1")?;
    let control = cluster.node("node-1")?.pids.get(Component::Control).context("a manager runs")?;
    let children = std::fs::read_to_string(format!("/proc/{control}/task/{control}/children"))?;
    let children: Vec<String> = all_children(control)?.into_iter().chain([children]).collect();
    let etcd = children.iter().flat_map(|list| list.split_whitespace()).next().context("a child")?.to_owned();
    let killed = std::process::Command::new("kill").args(["-KILL", &etcd]).status()?;
    ensure!(killed.success(), "kill etcd: {killed}");
    eventually("the manager to serve with its next etcd", PATIENCE, || {
        first.run(&["service", "scale", "--detach", "web=3"]).map(drop)
    })?;
    lab.kill("node-1", Part::One(Component::Control))?;
    answers(cluster)?;
    lab.start("node-1", Part::One(Component::Control), binaries)?;
    cluster.wait_running("web", 3, PATIENCE)?;
    lab.kill("node-2", Part::One(Component::Agent))?;
    lab.start("node-2", Part::One(Component::Agent), binaries)?;
    eventually("both nodes to be Ready", PATIENCE, || {
        let nodes = first.run(&["node", "ls", "--format", "{{.Status}}"])?;
        ensure!(nodes.lines().filter(|row| *row == "Ready").count() == 2, "nodes: {nodes}");
        answers(cluster)
    })
}

/// The children of each thread of a process.
fn all_children(pid: u32) -> Result<Vec<String>> {
    let mut lists = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        lists.push(std::fs::read_to_string(thread?.path().join("children"))?);
    }
    Ok(lists)
}
