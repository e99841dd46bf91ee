//! Tests that local clients notice neither an agent's restart nor a hung mesh-control, that no
//! spelling of a path reaches the engine's own swarm, and that leaked connections block no client.
#![cfg(feature = "cluster")]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::Part;
use mesh_lab::cluster::{Cluster, Docker, eventually, samples};
use mesh_lab::component::Component;
use mesh_tests::lab::PowerCut;
use mesh_tests::{PATIENCE, cluster};
use rustix::process::{Pid, Signal, kill_process};

/// The deadline of an engine's call through a node's socket while mesh-control hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

#[test]
fn the_socket_outlives_its_agent() -> Result<()> {
    let cluster = cluster()?;
    let socket = socket_of(&cluster, "node-2")?;
    let file = std::fs::metadata(&socket)?;
    ensure!(file.mode() & 0o777 == 0o660, "mode {:o}", file.mode());
    let agent = PowerCut::of_part(&cluster, "node-2", Part::One(Component::Agent))?;
    // Like a container with the socket bind-mounted: it waits in the accept queue of the same
    // socket.
    let mut waiting = UnixStream::connect(&socket).context("connect while no agent runs")?;
    waiting.set_read_timeout(Some(PATIENCE))?;
    ask(&mut waiting, "GET", "/_ping")?;
    agent.restore(&cluster)?;
    let answer = first(&mut waiting)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "answered: {answer}");
    ensure!(std::fs::metadata(&socket)?.ino() == file.ino(), "the socket is another file");
    Ok(())
}

#[test]
fn calls_to_the_engine_do_not_wait_for_control() -> Result<()> {
    let cluster = cluster()?;
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?;
    let _stopped = Stopped::of(manager.pids.get(Component::Control).context("control runs")?)?;
    let docker = cluster.docker()?;
    for words in [&["ps"][..], &["info"], &["network", "ls"]] {
        let asked = Instant::now();
        docker.run(words)?;
        let took = asked.elapsed();
        ensure!(took < ANSWER_LIMIT, "docker {words:?} took {took:?}");
    }
    let mut events = UnixStream::connect(socket_of(&cluster, &manager.name)?)?;
    events.set_read_timeout(Some(ANSWER_LIMIT))?;
    ask(&mut events, "GET", "/v1.41/events")?;
    let answer = first(&mut events)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "events: {answer}");
    Ok(())
}

#[test]
fn no_path_reaches_the_engines_own_swarm() -> Result<()> {
    let cluster = cluster()?;
    for node in ["node-1", "node-2"] {
        let socket = socket_of(&cluster, node)?;
        for path in [
            "/v1.41.0/swarm/init",
            "/v1.41/s%77arm/init",
            "/v1.41%2fswarm/init",
            "/v1.41/containers/%2e%2e/swarm/init",
            "//swarm/init",
        ] {
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            ask(&mut stream, "POST", path)?;
            let answer = first(&mut stream)?;
            ensure!(!answer.starts_with("HTTP/1.1 200"), "{path} on {node} answered {answer}");
        }
        let engine = Docker::towards(&cluster.node(node)?.docker_host);
        let state = engine.run(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
        ensure!(state.trim() == "inactive", "the engine of {node} is in a swarm of its own: {state}");
    }
    Ok(())
}

#[test]
fn leaked_connections_block_no_client() -> Result<()> {
    let cluster = cluster()?;
    let node = cluster.node("node-1")?;
    let socket = socket_of(&cluster, "node-1")?;
    let mut held = Vec::new();
    for number in 0..1_100 {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_nonblocking(true)?;
        if number % 2 == 0 {
            // The client that is turned away may already be disconnected.
            ask(&mut stream, "GET", "/v1.41/events").ok();
        }
        held.push(stream);
    }
    let docker = cluster.docker()?;
    eventually("service ls beside leaked connections", PATIENCE, || docker.run(&["service", "ls"]))?;
    let refused: f64 =
        samples(&cluster.metrics(node)?, "mesh_refusals_total", &[("listener", "docker-socket")])
            .iter()
            .sum();
    ensure!(refused > 0.0, "no refusal was counted");
    Ok(())
}

fn socket_of(cluster: &Cluster, node: &str) -> Result<PathBuf> {
    let host = &cluster.node(node)?.mesh_host;
    Ok(Path::new(host.strip_prefix("unix://").context("a socket on this machine")?).to_owned())
}

fn ask(stream: &mut UnixStream, method: &str, path: &str) -> Result<()> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n");
    Ok(stream.write_all(request.as_bytes())?)
}

fn first(stream: &mut UnixStream) -> Result<String> {
    let mut bytes = [0; 2048];
    let read = stream.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

/// A process that is stopped (SIGSTOP) until the test ends.
struct Stopped(Pid);

impl Stopped {
    fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(error) = kill_process(self.0, Signal::CONT) {
            eprintln!("can't continue process {:?}: {error}", self.0);
        }
    }
}
