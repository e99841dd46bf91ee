//! The demo's steps without load: publish, ask, scale, read figures, clean up.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::told::{seen, step, typed};
use crate::client::http;
use crate::client::load::ask;
use crate::cluster::{Cluster, Docker, eventually, samples};

/// The demo's service.
pub(super) const SERVICE: &str = "myweb";

/// Its published port.
pub(super) const PORT: u16 = 80;

/// Requests to each node to check the spread.
const REQUESTS: u32 = 100;

/// Runs a docker command, and prints it with its output.
pub(super) fn docker(docker: &Docker, args: &[&str]) -> Result<String> {
    typed(&format!("docker {}", args.join(" ")));
    let said = docker.run(args)?;
    seen(&said);
    Ok(said)
}

pub(super) fn nodes(cluster: &Cluster) -> Result<()> {
    typed(&format!("export DOCKER_HOST={}", cluster.docker()?.host()));
    let listed = docker(&cluster.docker()?, &["node", "ls"])?;
    let ready = listed.lines().filter(|line| line.contains("Ready")).count();
    ensure!(
        ready == cluster.record.nodes.len(),
        "expected {} ready nodes, saw {ready}",
        cluster.record.nodes.len()
    );
    Ok(())
}

pub(super) fn publish(cluster: &Cluster) -> Result<()> {
    step("Publish a port once: two replicas of nginx");
    let begun = Instant::now();
    let cli = cluster.docker()?;
    let publish = format!("{PORT}:{PORT}");
    typed(&format!("docker service create --name {SERVICE} --replicas 2 -p {publish} nginx"));
    cli.run(&[
        "service",
        "create",
        "--quiet",
        "--name",
        SERVICE,
        "--replicas",
        "2",
        "-p",
        &publish,
        "nginx",
    ])?;
    seen(&format!(
        "converged after {:.1} s, 5 s of them the CLI's own verification",
        begun.elapsed().as_secs_f64()
    ));
    docker(&cli, &["service", "ls"])?;
    docker(&cli, &["service", "ps", SERVICE])?;
    Ok(())
}

pub(super) fn ask_every_node(cluster: &Cluster) -> Result<()> {
    step("Every node answers, also the one that runs no task");
    let containers = cluster.containers(SERVICE)?;
    let idle = containers.iter().filter(|(_, tasks)| tasks.is_empty()).count();
    ensure!(idle == 1, "expected two tasks on two of three nodes, saw {containers:?}");
    for node in &cluster.record.nodes {
        let server = SocketAddrV4::new(node.ip, PORT);
        typed(&format!("curl http://{server}/"));
        let page = cluster.client().run(|| {
            let page = http::get(server, "/", http::DEADLINE)?.text();
            (1..REQUESTS).try_for_each(|_| ask(server, "/").map(drop))?;
            Ok(page)
        })?;
        let tasks = containers.get(&node.name).map_or(0, Vec::len);
        seen(&format!(
            "{page}    {REQUESTS} of {REQUESTS} requests answered; {} runs {tasks} task(s)",
            node.name
        ));
    }
    Ok(())
}

pub(super) fn client_address(cluster: &Cluster) -> Result<()> {
    let client = cluster.record.client.ip.to_string();
    step(&format!("The tasks saw the client's own address, {client}, and an even share of its requests"));
    let asked = u64::from(REQUESTS) * cluster.record.nodes.len() as u64;
    let lines = eventually("all requests in the tasks' logs", Duration::from_secs(5), || {
        let lines = access_lines(cluster)?;
        let logged = lines.values().map(Vec::len).sum::<usize>() as u64;
        ensure!(logged >= asked, "{logged} of {asked} requests logged");
        Ok(lines)
    })?;
    let tasks = lines.len() as u64;
    for (task, own) in &lines {
        let foreign = own.iter().find(|line| !line.starts_with(&client));
        ensure!(foreign.is_none(), "{task} logged another client: {foreign:?}");
        seen(&format!("{task}: {} requests, such as: {}", own.len(), own.last().map_or("", String::as_str)));
        let deviation = (own.len() as u64 * tasks).abs_diff(asked);
        ensure!(deviation * 10 <= asked, "{task} got {} of {asked} requests: not an even share", own.len());
    }
    Ok(())
}

/// The access-log lines of each task.
fn access_lines(cluster: &Cluster) -> Result<BTreeMap<String, Vec<String>>> {
    let mut lines = BTreeMap::new();
    for (node, containers) in cluster.containers(SERVICE)? {
        let docker = Docker::towards(&cluster.node(&node)?.mesh_host);
        for (id, task) in containers {
            let log = docker.run(&["logs", &id])?;
            lines
                .insert(task, log.lines().filter(|line| line.contains("GET /")).map(str::to_owned).collect());
        }
    }
    Ok(lines)
}

pub(super) fn scale(cluster: &Cluster) -> Result<()> {
    step("Scale to four: the new tasks spread over the nodes");
    let cli = cluster.docker()?;
    typed(&format!("docker service scale {SERVICE}=4"));
    cli.run(&["service", "scale", &format!("{SERVICE}=4")])?;
    docker(&cli, &["service", "ps", SERVICE])?;
    let counts: Vec<usize> = cluster.containers(SERVICE)?.values().map(Vec::len).collect();
    let (fewest, most) =
        (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
    ensure!(
        counts.iter().sum::<usize>() == 4 && most - fewest <= 1,
        "expected four tasks, evenly spread, saw {counts:?}"
    );
    Ok(())
}

pub(super) fn figures(cluster: &Cluster) -> Result<()> {
    step("Figures of every backend, from the kernel's maps");
    let node = cluster.record.nodes.first().context("the lab has no node")?;
    typed(&format!("curl -s {} | grep mesh_backend_connections_total", node.metrics));
    let exposition = cluster.metrics(node)?;
    for line in exposition.lines().filter(|line| line.starts_with("mesh_backend_connections_total{")) {
        seen(line);
    }
    let counted = samples(&exposition, "mesh_backend_connections_total", &[("service", SERVICE)]);
    ensure!(
        counted.len() >= 4 && counted.iter().all(|count| *count > 0.0),
        "expected connections on every one of four backends, saw {counted:?}"
    );
    Ok(())
}

pub(super) fn clean_up(cluster: &Cluster) -> Result<()> {
    step("Clean up: the service goes, and with it the port and the containers");
    docker(&cluster.docker()?, &["service", "rm", SERVICE])?;
    eventually("no container of the service", Duration::from_secs(20), || {
        let left = cluster.containers(SERVICE)?;
        ensure!(left.values().all(Vec::is_empty), "containers: {left:?}");
        Ok(())
    })?;
    for server in cluster.everywhere(PORT) {
        eventually("a refused connection", Duration::from_secs(5), || {
            ensure!(cluster.client().run(|| ask(server, "/")).is_err(), "{server} still answers");
            Ok(())
        })?;
    }
    seen("no container is left, and all nodes refuse the port");
    Ok(())
}
