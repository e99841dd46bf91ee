//! Empty machines become a cluster by Swarm's own two commands, with an etcd that the managers run,
//! and it outlives the violent end of each part. Managers come and go.
//!
//! Needs root, cgroups, the Docker engine and etcd; `cargo xtask test lab` runs it where they are
//! available.

use std::net::SocketAddrV4;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::artifacts::{self, Binaries};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_lab::component::Component;
use mesh_lab::layout::Layout;
use mesh_lab::{Datapath, Lab, Part, UpOptions};

const NAME: &str = "emptytest";
/// How long a state may take to come.
const PATIENCE: Duration = Duration::from_mins(1);
/// The nodes that are members from the beginning.
const MEMBERS: &[&str] = &["node-1", "node-2", "node-4"];

#[test]
fn a_cluster_is_made_by_two_commands() -> Result<()> {
    let layout = Layout::new(NAME.parse()?);
    let binaries = artifacts::build()?;
    let options = UpOptions { nodes: 4, managers: 3, empty: true, ..UpOptions::usual(Datapath::Tc) };
    let mut lab = Lab::up(&layout, &options, &binaries)?;
    let cluster = Cluster::open(layout.clone())?;
    is_refused_where_no_manager_is(&cluster)
        .and_then(|()| is_made(&cluster, &binaries))
        .and_then(|()| serves(&cluster))
        .and_then(|()| etcd_serves_nobody_else(&lab))
        .and_then(|()| outlives_its_parts(&mut lab, &cluster, &binaries))
        .and_then(|()| gets_more_managers(&cluster))
        .and_then(|()| outlives_its_leader(&mut lab, &cluster, &binaries))
        .and_then(|()| lets_managers_go(&cluster))
        .and_then(|()| is_saved_by_one_manager(&mut lab, &cluster))
        .context("the lab is kept for inspection; then: cargo xtask lab down --name emptytest")?;
    Lab::down(&layout)
}

fn docker(cluster: &Cluster, node: &str) -> Result<Docker> {
    Ok(Docker::towards(&cluster.node(node)?.mesh_host))
}

fn is_refused_where_no_manager_is(cluster: &Cluster) -> Result<()> {
    for node in ["node-1", "node-2", "node-3", "node-4"] {
        let state = docker(cluster, node)?.run(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
        ensure!(state.trim() == "inactive", "{node} is {state}");
    }
    let refused = docker(cluster, "node-4")?.refused(&["swarm", "init"])?;
    ensure!(refused.message.contains("no manager waits for docker swarm init"), "{refused:?}");
    let bad = docker(cluster, "node-1")?.refused(&["swarm", "init", "--advertise-addr", "eth77"])?;
    ensure!(bad.message.contains("advertise address must be a non-zero IP address"), "{bad:?}");
    let bad = docker(cluster, "node-1")?.refused(&["swarm", "init", "--default-addr-pool", "127.0.0.0/8"])?;
    ensure!(bad.message.contains("127.0.0.0/8"), "{bad:?}");
    Ok(())
}

/// Runs `mesh` with a node's socket, and returns what it says.
fn mesh(cluster: &Cluster, binaries: &Binaries, node: &str, words: &[&str]) -> Result<String> {
    let host = &cluster.node(node)?.mesh_host;
    let output =
        Command::new(binaries.mesh()).args(["--host", host]).args(words).output().context("start mesh")?;
    ensure!(output.status.success(), "mesh {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn is_made(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
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
    let [.., "--token", token, manager] = words[..] else { bail!("the command: {join}") };
    // The ports of this machine, which the check looks at, are not the lab's.
    let joined = mesh(cluster, binaries, "node-4", &["join", "--skip-check", "--token", token, manager])?;
    ensure!(joined.starts_with("This node joined the cluster as a worker."), "mesh join said: {joined}");
    let again = mesh(cluster, binaries, "node-4", &["up"]);
    ensure!(again.is_err(), "mesh up of a member said: {again:?}");
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
    eventually("every member to answer", PATIENCE, || answers_on(cluster, MEMBERS))
}

fn answers(cluster: &Cluster) -> Result<()> {
    answers_on(cluster, &["node-1", "node-2", "node-3", "node-4"])
}

fn answers_on(cluster: &Cluster, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        let server = SocketAddrV4::new(cluster.node(node)?.ip, 8080);
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
    answers_on(cluster, MEMBERS)?;
    lab.start("node-1", Part::One(Component::Control), binaries)?;
    cluster.wait_running("web", 3, PATIENCE)?;
    lab.kill("node-2", Part::One(Component::Agent))?;
    lab.start("node-2", Part::One(Component::Agent), binaries)?;
    eventually("all nodes to be Ready", PATIENCE, || {
        let nodes = first.run(&["node", "ls", "--format", "{{.Status}}"])?;
        ensure!(nodes.lines().filter(|row| *row == "Ready").count() == 3, "nodes: {nodes}");
        answers_on(cluster, MEMBERS)
    })
}

/// Waits until `docker node ls` on `node` shows exactly these managers, as in `node-1 Leader`.
fn shows_managers(cluster: &Cluster, node: &str, expected: &[&str]) -> Result<()> {
    eventually(&format!("the managers {expected:?}"), PATIENCE, || {
        let rows =
            docker(cluster, node)?.run(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        let mut seen: Vec<&str> = rows.lines().map(str::trim).filter(|row| row.contains(' ')).collect();
        seen.sort_unstable();
        ensure!(seen == expected, "managers: {seen:?}");
        Ok(())
    })
}

/// One node joins as a manager, and a worker is promoted.
fn gets_more_managers(cluster: &Cluster) -> Result<()> {
    let first = docker(cluster, "node-1")?;
    let token = first.run(&["swarm", "join-token", "-q", "manager"])?;
    let joined =
        docker(cluster, "node-3")?.run(&["swarm", "join", "--token", token.trim(), "10.77.0.11:2377"])?;
    ensure!(joined.trim() == "This node joined a swarm as a manager.", "docker swarm join said: {joined}");
    shows_managers(cluster, "node-3", &["node-1 Leader", "node-3 Reachable"])?;
    first.run(&["node", "promote", "node-2"])?;
    shows_managers(cluster, "node-2", &["node-1 Leader", "node-2 Reachable", "node-3 Reachable"])
}

/// The leader and its etcd are killed: the others act, and it comes back.
fn outlives_its_leader(lab: &mut Lab, cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    lab.kill("node-1", Part::One(Component::Control))?;
    let away = docker(cluster, "node-1")?.refused(&["node", "ls"])?;
    ensure!(away.message.contains("its mesh-control doesn't run"), "{away:?}");
    let second = docker(cluster, "node-2")?;
    eventually("another manager to act", PATIENCE, || {
        second.run(&["service", "scale", "--detach", "web=4"]).map(drop)
    })?;
    cluster_runs(&second, 4)?;
    answers(cluster)?;
    eventually("the dead manager to be seen", PATIENCE, || {
        let rows = second.run(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        ensure!(rows.contains("node-1 Unreachable") && rows.contains("Leader"), "managers: {rows}");
        Ok(())
    })?;
    let refused = second.refused(&["node", "demote", "node-3"])?;
    ensure!(refused.message.contains("this would result in a loss of quorum"), "{refused:?}");
    lab.start("node-1", Part::One(Component::Control), binaries)?;
    eventually("three managers again", PATIENCE, || {
        let rows = second.run(&["node", "ls", "--format", "{{.ManagerStatus}}"])?;
        ensure!(rows.lines().filter(|row| row.trim() == "Reachable").count() == 2, "managers: {rows}");
        Ok(())
    })
}

/// Waits until the service runs so many tasks, as the manager of `docker` says.
fn cluster_runs(docker: &Docker, expected: usize) -> Result<()> {
    eventually("the tasks to run", PATIENCE, || {
        let args = ["service", "ps", "-f", "desired-state=running", "--format", "{{.CurrentState}}", "web"];
        let states = docker.run(&args)?;
        let running = states.lines().filter(|state| state.starts_with("Running")).count();
        ensure!(running == expected, "{running} tasks run: {states}");
        Ok(())
    })
}

/// A manager is demoted while its node answers, and promoted again; another leaves by force.
fn lets_managers_go(cluster: &Cluster) -> Result<()> {
    let (second, third) = (docker(cluster, "node-2")?, docker(cluster, "node-3")?);
    let leaves = third.refused(&["swarm", "leave"])?;
    ensure!(leaves.message.contains("The only way to restore a swarm that has lost consensus"), "{leaves:?}");
    second.run(&["node", "demote", "node-3"])?;
    eventually("the demoted manager to be a worker", PATIENCE, || {
        answers(cluster)?;
        let info =
            third.run(&["info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"])?;
        ensure!(info.trim() == "active false", "docker info: {info}");
        let rows = second.run(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        ensure!(rows.lines().any(|row| row.trim() == "node-3"), "managers: {rows}");
        Ok(())
    })?;
    let data = cluster.layout.node_named("node-3").context("node-3")?.control_dir();
    eventually("the manager's state to be gone", PATIENCE, || {
        ensure!(!data.join("etcd").exists() && !data.join("key").exists(), "the state is still there");
        Ok(())
    })?;
    second.run(&["node", "promote", "node-3"])?;
    eventually("the promoted manager to answer", PATIENCE, || third.run(&["node", "ls"]).map(drop))
}

/// Two of three managers are lost: the third goes on alone by force, with all that there was.
fn is_saved_by_one_manager(lab: &mut Lab, cluster: &Cluster) -> Result<()> {
    for node in ["node-2", "node-3"] {
        lab.kill(node, Part::One(Component::Control))?;
    }
    let first = docker(cluster, "node-1")?;
    eventually("writes to be refused", PATIENCE, || {
        first.refused(&["service", "scale", "--detach", "web=2"]).map(drop)
    })?;
    answers(cluster)?;
    let said = first.run(&["swarm", "init", "--force-new-cluster"])?;
    ensure!(said.starts_with("Swarm initialized: current node ("), "docker swarm init said: {said}");
    eventually("the manager to act", PATIENCE, || {
        first.run(&["service", "scale", "--detach", "web=2"]).map(drop)
    })?;
    cluster_runs(&first, 2)?;
    for node in ["node-2", "node-3"] {
        eventually("a lost manager to be demoted", PATIENCE, || {
            first.run(&["node", "demote", node]).map(drop)
        })?;
    }
    let last = first.refused(&["node", "demote", "node-1"])?;
    ensure!(last.message.contains("attempting to demote the last manager of the swarm"), "{last:?}");
    answers(cluster)
}

/// The children of each thread of a process.
fn all_children(pid: u32) -> Result<Vec<String>> {
    let mut lists = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        lists.push(std::fs::read_to_string(thread?.path().join("children"))?);
    }
    Ok(lists)
}
