//! Tests of the unmodified docker CLI on a node's socket: services, the local engine behind it, and
//! bad input.
#![cfg(feature = "cluster")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Docker, eventually};
use mesh_tests::{PATIENCE, Service, cluster};

#[test]
fn the_engine_answers_behind_the_socket() -> Result<()> {
    let cluster = cluster()?;
    for node in &cluster.record.nodes {
        let docker = Docker::towards(&node.mesh_host);
        let said = docker.run(&["run", "--rm", "busybox", "echo", "through the socket"])?;
        ensure!(said.trim() == "through the socket", "docker run on {} said: {said}", node.name);
    }
    Ok(())
}

#[test]
fn exec_and_logs_stream_through_the_socket() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let id = docker.run(&["run", "-d", "busybox", "sh", "-c", "while :; do echo tick; sleep 0.2; done"])?;
    let id = id.trim();
    let streamed = stream_of(&docker, id);
    docker.run(&["rm", "-f", id])?;
    streamed
}

fn stream_of(docker: &Docker, id: &str) -> Result<()> {
    let mut exec =
        docker.command(&["exec", "-i", id, "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    exec.stdin.take().context("no stdin")?.write_all(b"echoed")?;
    let mut echoed = String::new();
    exec.stdout.take().context("no stdout")?.read_to_string(&mut echoed)?;
    ensure!(exec.wait()?.success() && echoed == "echoed", "docker exec -i cat answered: {echoed}");
    let mut logs = docker.command(&["logs", "-f", id]).stdout(Stdio::piped()).spawn()?;
    let mut begin = [0; 10];
    let read = logs.stdout.as_mut().context("no stdout")?.read_exact(&mut begin);
    logs.kill()?;
    logs.wait()?;
    read.context("follow the logs")?;
    ensure!(&begin == b"tick\ntick\n", "docker logs -f said: {}", String::from_utf8_lossy(&begin));
    Ok(())
}

#[test]
fn a_worker_has_no_power_over_the_cluster() -> Result<()> {
    let cluster = cluster()?;
    let Some(worker) = cluster.record.nodes.iter().find(|node| !node.manager) else { return Ok(()) };
    let refusal = Docker::towards(&worker.mesh_host).refused(&["service", "ls"])?;
    ensure!(refusal.message.contains("This node is not a swarm manager"), "said: {}", refusal.message);
    Ok(())
}

#[test]
fn services_are_listed_inspected_scaled_and_updated() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let service = Service::create(&cluster, "known", &["--replicas", "1", "-p", "8097:80", "nginx:1.10"])?;
    let listed = docker.run(&[
        "service",
        "ls",
        "--format",
        "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}",
    ])?;
    ensure!(
        listed.lines().any(|line| line == "known replicated 1/1 nginx:1.10 *:8097->80/tcp"),
        "service ls said: {listed}"
    );
    let pretty = docker.run(&["service", "inspect", "--pretty", service.name()])?;
    for expected in
        ["Name:\t\tknown", "Service Mode:\tReplicated", "Image:\t\tnginx:1.10", "PublishedPort = 8097"]
    {
        ensure!(pretty.contains(expected), "expected `{expected}` in: {pretty}");
    }
    docker.run(&["service", "scale", "known=3"])?;
    cluster.wait_running(service.name(), 3, PATIENCE)?;
    docker.run(&[
        "service",
        "update",
        "--quiet",
        "--update-delay",
        "0s",
        "--image",
        "nginx:1.11",
        service.name(),
    ])?;
    cluster.wait_running(service.name(), 3, PATIENCE)?;
    for server in cluster.everywhere(8097) {
        let page = cluster.ask(server, "/")?;
        ensure!(page.contains("1.11"), "expected the new image's page, saw: {page}");
    }
    let nodes = docker.run(&[
        "node",
        "inspect",
        "--format",
        "{{.Description.Hostname}} {{.Status.State}}",
        "self",
    ])?;
    ensure!(nodes.contains("node-1 ready"), "node inspect self said: {nodes}");
    Ok(())
}

#[test]
fn a_name_is_given_when_none_is_asked_for() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let id = docker.run(&["service", "create", "--detach", "--quiet", "busybox", "sleep", "1000"])?;
    let name = docker.run(&["service", "inspect", "--format", "{{.Spec.Name}}", id.trim()]);
    docker.run(&["service", "rm", id.trim()])?;
    let name = name?;
    ensure!(name.trim().contains('_'), "expected a name like objective_jackson, saw {name}");
    Ok(())
}

#[test]
fn bad_input_is_refused_and_stores_nothing() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let first = Service::create(&cluster, "holder", &["--replicas", "1", "-p", "8098:80", "nginx"])?;
    let clash =
        docker.refused(&["service", "create", "--detach", "--name", "second", "-p", "8098:80", "nginx"])?;
    ensure!(
        clash.message.contains("port '8098' is already in use by service 'holder'"),
        "a port in use said: {}",
        clash.message
    );
    let double = docker.refused(&["service", "create", "--detach", "--name", first.name(), "nginx"])?;
    ensure!(double.message.contains("name conflicts with an existing object"), "said: {}", double.message);
    let label = docker.refused(&[
        "service",
        "create",
        "--detach",
        "--name",
        "third",
        "--label",
        "mesh.lb.policy=best",
        "nginx",
    ])?;
    ensure!(label.message.contains("round-robin, random, least-connections"), "said: {}", label.message);
    let names = docker.run(&["service", "ls", "--format", "{{.Name}}"])?;
    ensure!(!names.contains("second") && !names.contains("third"), "a refused service was stored: {names}");
    let missing = docker.refused(&["service", "inspect", "nowhere"])?;
    ensure!(missing.message.contains("no such service: nowhere"), "said: {}", missing.message);
    Ok(())
}

#[test]
fn malformed_json_is_a_bad_request() -> Result<()> {
    let cluster = cluster()?;
    let socket = cluster.docker()?.host().trim_start_matches("unix://").to_owned();
    let answer = eventually("an answer", PATIENCE, || {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let body = "{\"Name\": ";
        write!(
            stream,
            "POST /v1.41/services/create HTTP/1.1\r\nHost: mesh\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    ensure!(answer.starts_with("HTTP/1.1 400 "), "expected 400, saw: {answer}");
    ensure!(answer.contains("\"message\""), "expected Docker's error form, saw: {answer}");
    Ok(())
}
