//! Tests the lab itself, without mesh: it comes up over the remains of a killed one, its nodes
//! break and mend, and it leaves nothing behind.
//!
//! Needs root, cgroups and the Docker engine; `cargo xtask test lab` runs it where they are
//! available.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_checkout::command::Program;
use mesh_lab::artifacts;
use mesh_lab::component::Component;
use mesh_lab::layout::Layout;
use mesh_lab::{Datapath, Lab, Part, UpOptions};

const NAME: &str = "labtest";

fn options() -> UpOptions {
    UpOptions { nodes: 2, bare: true, ..UpOptions::usual(Datapath::Xdp) }
}

#[test]
fn a_lab_breaks_mends_and_leaves_nothing() -> Result<()> {
    let layout = Layout::new(NAME.parse()?);
    let binaries = artifacts::build_whoami()?;
    let mut lab = Lab::up(&layout, &options(), &binaries)?;
    nodes_reach_each_other(&lab)
        .and_then(|()| a_container_outlives_its_engine(&mut lab, &binaries))
        .and_then(|()| a_power_cut_kills_and_a_reboot_mends(&mut lab, &binaries))
        .and_then(|()| a_killed_lab_comes_up_again(&layout, &binaries))
        .context("the lab is kept for inspection; then: cargo xtask lab down --name labtest")?;
    Lab::down(&layout)?;
    nothing_is_left(&layout)
}

fn nodes_reach_each_other(lab: &Lab) -> Result<()> {
    for (from, to) in [("client", "10.77.0.11"), ("node-1", "10.77.0.12"), ("node-2", "10.77.0.1")] {
        ensure!(ping(lab, from, to)?, "{from} can't reach {to}");
    }
    lab.partition("node-2", false)?;
    ensure!(!ping(lab, "client", "10.77.0.12")?, "the client reaches node-2 over a link that is cut");
    lab.partition("node-2", true)?;
    ensure!(ping(lab, "client", "10.77.0.12")?, "the client can't reach node-2 over the mended link");
    let status = inside(lab, "node-1", &["sh", "-c", "exit 7"])?.status()?;
    ensure!(status.code() == Some(7), "expected exec to end as the command does, saw {status}");
    Ok(())
}

fn a_container_outlives_its_engine(lab: &mut Lab, binaries: &artifacts::Binaries) -> Result<()> {
    docker(lab, &["run", "--detach", "--name", "server", "--network", "host", "whoami"])?;
    let before = pid_of_engine(lab)?;
    lab.kill("node-1", Part::One(Component::Dockerd))?;
    ensure!(
        lab.record().node("node-1").is_some_and(|n| n.pids.dockerd.is_none()),
        "a killed engine has a pid"
    );
    lab.start("node-1", Part::One(Component::Dockerd), binaries)?;
    ensure!(pid_of_engine(lab)? != before, "the engine's new pid is not in the record");
    let running = docker(lab, &["inspect", "--format", "{{.State.Running}}", "server"])?;
    ensure!(running.trim() == "true", "the container didn't outlive its engine: {running}");
    let said =
        inside(lab, "client", &["curl", "--silent", "--max-time", "5", "http://10.77.0.11/"])?.output()?;
    let said = String::from_utf8_lossy(&said.stdout);
    ensure!(
        said.contains(r#""client":"10.77.0.1:"#),
        "expected whoami to show the client's address, saw: {said}"
    );
    Ok(())
}

fn a_power_cut_kills_and_a_reboot_mends(lab: &mut Lab, binaries: &artifacts::Binaries) -> Result<()> {
    lab.kill("node-1", Part::All)?;
    ensure!(!ping(lab, "client", "10.77.0.11")?, "a node without power answers");
    ensure!(processes(lab.layout(), "node-1")?.is_empty(), "processes outlived the power cut");
    ensure!(lab.start("node-2", Part::One(Component::Etcd), binaries).is_err(), "etcd started on a worker");
    lab.start("node-1", Part::All, binaries)?;
    ensure!(ping(lab, "client", "10.77.0.11")?, "a node with power doesn't answer");
    let running = docker(lab, &["inspect", "--format", "{{.State.Running}}", "server"])?;
    ensure!(running.trim() == "false", "a container runs after a reboot: {running}");
    docker(lab, &["start", "server"]).map(drop)
}

/// As after a crash of the whole lab: nothing was cleaned up.
fn a_killed_lab_comes_up_again(layout: &Layout, binaries: &artifacts::Binaries) -> Result<()> {
    for pid in processes(layout, "node-2")? {
        Program::new("kill").args(["-KILL", &pid]).run()?;
    }
    let lab = Lab::up(layout, &options(), binaries)?;
    let images = docker(&lab, &["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
    for image in ["nginx:latest", "nginx:1.10", "nginx:1.11", "busybox:latest", "whoami:latest"] {
        ensure!(images.lines().any(|line| line == image), "expected {image}, saw: {images}");
    }
    Ok(())
}

fn nothing_is_left(layout: &Layout) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let run_dir = layout.run_dir();
    ensure!(!mounts.contains(&run_dir.display().to_string()), "mounts are left: {mounts}");
    for path in [run_dir, layout.state_dir(), layout.record_file()] {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    let spaces = Program::new("ip").args(["netns", "list"]).output()?;
    ensure!(!spaces.lines().any(|line| line.starts_with("labtest-")), "namespaces are left: {spaces}");
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        let group = hierarchy?.path().join(layout.cgroup());
        ensure!(!group.exists(), "{} is left", group.display());
    }
    Ok(())
}

fn inside(lab: &Lab, place: &str, words: &[&str]) -> Result<Command> {
    lab.command(place, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
}

fn ping(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    Ok(inside(lab, from, &["busybox", "ping", "-c", "1", "-W", "1", to])?.output()?.status.success())
}

fn docker(lab: &Lab, args: &[&str]) -> Result<String> {
    let node = lab.record().node("node-1").context("no node-1")?;
    Program::new("docker").args(["--host", &node.docker_host]).args(args).output()
}

fn pid_of_engine(lab: &Lab) -> Result<u32> {
    lab.record().node("node-1").and_then(|node| node.pids.dockerd).context("the engine has no pid")
}

/// The process ids in a node's cgroup and below it.
fn processes(layout: &Layout, node: &str) -> Result<Vec<String>> {
    let group = layout.cgroup().join(node);
    let pids = Path::new("/sys/fs/cgroup/pids").join(&group);
    let directory = if pids.exists() { pids } else { Path::new("/sys/fs/cgroup").join(&group) };
    let listed = Program::new("find")
        .arg(directory)
        .args(["-name", "cgroup.procs", "-exec", "cat", "{}", "+"])
        .output()?;
    Ok(listed.lines().map(str::to_owned).collect())
}
