//! Tests of `docker service logs` and `docker events` across nodes, with the unmodified CLI.
#![cfg(feature = "cluster")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_tests::{PATIENCE, Service, cluster};

/// Shells and sleeps ignore SIGTERM as a container's first process.
const QUICK: &str = "--stop-grace-period=1s";

/// A command whose output is read line by line; dropping it kills the command.
struct Followed {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Followed {
    fn start(docker: &Docker, arguments: &[&str]) -> Result<Self> {
        let mut child = docker.command(arguments).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let stdout: ChildStdout = child.stdout.take().context("no stdout")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next line for which `wanted` is true.
    fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut seen = Vec::new();
        let end = std::time::Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(std::time::Instant::now()))
        {
            if wanted(&line) {
                return Ok(line);
            }
            seen.push(line);
        }
        bail!("expected {what}, saw {seen:#?}")
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("can't kill docker: {error}");
        }
    }
}

/// A service on every node whose tasks print `hello`, `oops` on stderr, then count.
fn talkers(cluster: &Cluster, name: &str) -> Result<Service> {
    let script = "echo hello; echo oops >&2; i=0; while :; do i=$((i+1)); echo tick $i; sleep 1; done";
    Service::create(cluster, name, &["--mode", "global", QUICK, "busybox", "sh", "-c", script])
}

#[test]
fn logs_of_all_nodes_are_read_with_their_source() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let service = talkers(&cluster, "talker")?;
    let nodes: Vec<&str> = cluster.record.nodes.iter().map(|node| node.name.as_str()).collect();
    // Each task's first lines, by node. The line on standard error may come last, up to the second
    // tick.
    eventually("a hello of each node, and a tick", PATIENCE, || {
        let said = docker.run(&["service", "logs", service.name()])?;
        for node in &nodes {
            let has = |word: &str| {
                said.lines().any(|line| {
                    line.starts_with("talker.0.")
                        && line.contains(&format!("@{node} "))
                        && line.ends_with(&format!("| {word}"))
                })
            };
            ensure!(has("hello") && has("tick 2"), "no hello or no second tick of {node} in: {said}");
        }
        Ok(())
    })?;
    let last = docker.run(&["service", "logs", "--raw", "--tail", "1", service.name()])?;
    ensure!(last.lines().count() == nodes.len(), "expected a line of each task, saw: {last}");
    ensure!(last.lines().all(|line| line.starts_with("tick ")), "expected the newest lines, saw: {last}");
    let timed = docker.run(&["service", "logs", "--raw", "--timestamps", "--tail", "1", service.name()])?;
    let moment = timed.split(' ').next().unwrap_or_default();
    ensure!(moment.len() == "2026-01-01T00:00:00.000000000Z".len() && moment.ends_with('Z'), "saw: {timed}");
    let since = docker.run(&["service", "logs", "--raw", "--since", moment, service.name()])?;
    ensure!(
        !since.contains("hello") && since.contains("tick"),
        "expected what came since {moment}, saw: {since}"
    );
    let detailed = docker.run(&["service", "logs", "--raw", "--details", "--tail", "1", service.name()])?;
    ensure!(detailed.contains("com.docker.swarm.node.id="), "expected details, saw: {detailed}");
    let ids = docker.run(&["service", "ps", "-q", "--no-trunc", service.name()])?;
    let task = ids.lines().next().context("no task")?;
    let whole = docker.run(&["service", "logs", "--no-trunc", "--tail", "1", task])?;
    ensure!(whole.contains(task) && whole.lines().count() == 1, "expected one task's line, saw: {whole}");
    let anonymous = docker.run(&["service", "logs", "--no-task-ids", "--tail", "1", service.name()])?;
    ensure!(anonymous.lines().all(|line| line.starts_with("talker.0@node-")), "saw: {anonymous}");
    Ok(())
}

#[test]
fn following_shows_tasks_that_appear_and_ends_on_the_nodes_with_the_client() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let script = "echo up; while :; do sleep 1; done";
    let service =
        Service::create(&cluster, "grower", &["--replicas", "1", QUICK, "busybox", "sh", "-c", script])?;
    let followed = Followed::start(&docker, &["service", "logs", "-f", service.name()])?;
    followed
        .until("the first task's line", |line| line.starts_with("grower.1.") && line.ends_with("| up"))?;
    docker.run(&["service", "scale", "--detach", "grower=3"])?;
    let said = |line: &str| line.ends_with("| up");
    let first = followed.until("a line of a new task", said)?;
    let second = followed.until("a line of the other new task", said)?;
    let mut slots: Vec<&str> = [&first, &second].iter().map(|line| &line[..9]).collect();
    slots.sort_unstable();
    ensure!(slots == ["grower.2.", "grower.3."], "saw {first} and {second}");
    let connections = || -> Result<usize> {
        let mut open = 0;
        for node in &cluster.record.nodes {
            open += node_connections(&cluster, &node.name)?;
        }
        Ok(open)
    };
    let while_following = connections()?;
    drop(followed);
    eventually("the nodes' log connections to end", PATIENCE, || {
        let left = connections()?;
        ensure!(left < while_following, "{left} connections to the manager, as many as while following");
        Ok(())
    })
}

/// The number of a node's connections to the manager's node service.
fn node_connections(cluster: &Cluster, node: &str) -> Result<usize> {
    let netns = &cluster.node(node)?.netns;
    let listed = std::process::Command::new("ip")
        .args(["netns", "exec", netns, "ss", "-Htn", "state", "established", "dport", "=", ":2377"])
        .output()?;
    ensure!(listed.status.success(), "ss in {netns}: {}", String::from_utf8_lossy(&listed.stderr));
    Ok(String::from_utf8_lossy(&listed.stdout).lines().count())
}

#[test]
fn a_terminals_logs_are_raw_and_a_missing_service_is_refused() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let script = "echo on a terminal; while :; do sleep 1; done";
    let service = Service::create(
        &cluster,
        "terminal",
        &["--tty", "--replicas", "1", QUICK, "busybox", "sh", "-c", script],
    )?;
    let pretty = docker.refused(&["service", "logs", service.name()])?;
    ensure!(pretty.message.contains("only supported with --raw"), "said: {}", pretty.message);
    eventually("the terminal's line", PATIENCE, || {
        let raw = docker.run(&["service", "logs", "--raw", service.name()])?;
        ensure!(raw == "on a terminal\r\n", "saw {raw:?}");
        Ok(())
    })?;
    let missing = docker.refused(&["service", "logs", "nowhere"])?;
    ensure!(missing.message.contains("no such task or service: nowhere"), "said: {}", missing.message);
    Ok(())
}

#[test]
fn events_of_engine_and_cluster_come_in_one_stream() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let format = "{{.Type}} {{.Action}} {{.Scope}} {{.Actor.Attributes.name}}";
    let followed = Followed::start(&docker, &["events", "--format", format])?;
    // Any event will do: the first one shows that both sources are connected.
    eventually("the stream to begin", PATIENCE, || {
        docker.run(&["run", "--rm", "busybox", "true"])?;
        let begun = followed.lines.recv_timeout(Duration::from_millis(500));
        ensure!(begun.is_ok(), "no event yet");
        Ok(())
    })?;
    let service =
        Service::create(&cluster, "eventful", &["--mode", "global", QUICK, "busybox", "sleep", "1000"])?;
    let name = service.name().to_owned();
    followed.until("the service's creation", |line| line == format!("service create swarm {name}"))?;
    followed.until("its container's start", |line| line.starts_with("container start local eventful."))?;
    drop(service);
    followed.until("the service's removal", |line| line == format!("service remove swarm {name}"))?;
    let listed = docker.run(&[
        "events",
        "--since",
        "10m",
        "--until",
        "0s",
        "--filter",
        "service=eventful",
        "--filter",
        "type=service",
        "--format",
        "{{.Action}}",
    ])?;
    // Earlier runs of the test may have left events in the lab.
    ensure!(listed.trim().ends_with("create\nremove"), "the past by filter was: {listed}");
    Ok(())
}
