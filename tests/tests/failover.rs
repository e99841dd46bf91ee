//! Tests of failures: a container killed, a node without power, an agent killed under traffic, etcd
//! gone.
#![cfg(feature = "cluster")]

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::Part;
use mesh_lab::client::http;
use mesh_lab::client::load::{LoadGenerator, ask};
use mesh_lab::cluster::{Cluster, Docker, eventually, samples};
use mesh_lab::component::Component;
use mesh_tests::{PATIENCE, Service, answering_task, cluster, lab};

/// How long after a task's death new connections may still fail.
const TABLE_LAG_MAX: Duration = Duration::from_secs(1);

/// How long after a node's death new connections may still go to its tasks.
const SILENCE_MAX: Duration = Duration::from_secs(3);

#[test]
fn a_killed_container_is_replaced_and_leaves_the_table_at_once() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(&cluster, "mortal", &["--replicas", "3", "-p", "8090:80", "nginx"])?;
    let (node, container) = cluster
        .containers(service.name())?
        .into_iter()
        .find_map(|(node, tasks)| tasks.into_iter().next().map(|(id, _)| (node, id)))
        .context("no container runs")?;
    let load = LoadGenerator::start(&cluster.client(), &cluster.everywhere(8090), "/", 100);
    std::thread::sleep(Duration::from_secs(1));
    let killed_at = load.elapsed();
    Docker::towards(&cluster.node(&node)?.mesh_host).run(&["rm", "-f", &container])?;
    let death = Instant::now();
    eventually("the death in the history", PATIENCE, || {
        let rows = cluster.docker()?.tasks(service.name())?;
        let dead = rows.iter().find(|row| row.desired_state == "Shutdown");
        let told = dead.is_some_and(|row| row.error.contains("task: non-zero exit (137)"));
        ensure!(told, "tasks: {rows:#?}");
        Ok(())
    })?;
    cluster.wait_running(service.name(), 3, PATIENCE)?;
    let replaced = death.elapsed();
    ensure!(
        replaced >= Duration::from_secs(4),
        "the replacement ran after {replaced:?}, before the restart delay of 5 s"
    );
    let report = load.stop()?;
    let late = report.failures_after(killed_at + TABLE_LAG_MAX);
    ensure!(late.is_empty(), "later than {TABLE_LAG_MAX:?} after the death: {late:?}");
    ensure!(report.answered() > 300, "expected load to go on, saw {} answers", report.answered());
    Ok(())
}

#[test]
fn a_dying_backend_costs_few_of_five_hundred_a_second() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(&cluster, "brief", &["--replicas", "4", "-p", "8094:80", "whoami"])?;
    for entry in &cluster.record.nodes {
        let (node, container) = cluster
            .containers(service.name())?
            .into_iter()
            .find_map(|(node, tasks)| tasks.into_iter().next().map(|(id, _)| (node, id)))
            .context("no container runs")?;
        let load = LoadGenerator::start(&cluster.client(), &[SocketAddrV4::new(entry.ip, 8094)], "/", 500);
        std::thread::sleep(Duration::from_secs(1));
        Docker::towards(&cluster.node(&node)?.docker_host).run(&["kill", &container])?;
        std::thread::sleep(Duration::from_secs(2));
        let report = load.stop()?;
        println!(
            "by {}, a task of {node} killed: {} failed, {} answered",
            entry.name,
            report.failures.len(),
            report.answered()
        );
        // 100 ms of 500 connections per second.
        ensure!(report.failures.len() <= 50, "{} failures: {:?}", report.failures.len(), report.failures);
        cluster.wait_running(service.name(), 4, PATIENCE)?;
    }
    Ok(())
}

#[test]
fn a_node_without_power_is_left_out_at_once_and_its_tasks_move() -> Result<()> {
    let cluster = cluster()?;
    let lost = cluster.record.nodes.iter().rfind(|node| !node.manager).context("no worker to lose")?.clone();
    let service = Service::create(&cluster, "durable", &["--replicas", "3", "-p", "8091:80", "whoami"])?;
    let others: Vec<SocketAddrV4> = cluster
        .record
        .nodes
        .iter()
        .filter(|node| node.name != lost.name)
        .map(|node| SocketAddrV4::new(node.ip, 8091))
        .collect();
    ensure!(
        !cluster.containers(service.name())?.get(&lost.name).is_none_or(Vec::is_empty),
        "{} runs no task of the service",
        lost.name
    );
    let load = LoadGenerator::start(&cluster.client(), &others, "/", 50);
    std::thread::sleep(Duration::from_secs(1));
    let power = lab::PowerCut::of(&cluster, &lost.name)?;
    let cut_at = load.elapsed();
    let begun = Instant::now();
    eventually("the node to be Down", Duration::from_secs(20), || {
        let rows = cluster.docker()?.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(rows.lines().any(|row| row == format!("{} Down", lost.name)), "nodes: {rows}");
        Ok(())
    })?;
    let rows = cluster.wait_running(service.name(), 3, PATIENCE)?;
    ensure!(rows.iter().all(|row| row.node != lost.name), "tasks still on {}: {rows:#?}", lost.name);
    eprintln!("down and replaced {:?} after the power cut", begun.elapsed());
    let report = load.stop()?;
    // A connection begun just before the limit may wait for its answer until its own deadline.
    let late = report.failures_after(cut_at + SILENCE_MAX);
    ensure!(late.is_empty(), "begun later than {SILENCE_MAX:?} after the power cut: {late:?}");
    let placed = cluster.wait_running(service.name(), 3, PATIENCE)?;
    power.restore(&cluster)?;
    let after = cluster.wait_running(service.name(), 3, PATIENCE)?;
    ensure!(
        ids(&placed) == ids(&after),
        "expected nothing to move back when {} returned; before {placed:#?}, after {after:#?}",
        lost.name
    );
    Ok(())
}

fn ids(rows: &[mesh_lab::cluster::TaskRow]) -> BTreeSet<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

#[test]
fn an_agent_killed_on_the_ingress_node_is_not_noticed_by_traffic() -> Result<()> {
    const SIZE: usize = 200_000_000;
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return the_proxy_dies_with_its_agent(&cluster);
    }
    let service = Service::create(&cluster, "steady", &["--replicas", "2", "-p", "8092:80", "whoami"])?;
    let ingress = cluster.record.nodes.last().context("the lab has no node")?.clone();
    let server = SocketAddrV4::new(ingress.ip, 8092);
    let labels = [("service", service.name())];
    let load = LoadGenerator::start(&cluster.client(), &[server], "/", 100);
    let download = {
        let client = cluster.client();
        std::thread::spawn(move || {
            client.run(|| http::get(server, &format!("/bytes?n={SIZE}"), Duration::from_mins(2)))
        })
    };
    std::thread::sleep(Duration::from_millis(300));
    let before: f64 =
        samples(&cluster.metrics(&ingress)?, "mesh_frontend_connections_total", &labels).iter().sum();
    lab::kill(&cluster, &ingress.name, Part::One(Component::Agent))?;
    std::thread::sleep(Duration::from_secs(2));
    lab::start(&cluster, &ingress.name, Part::One(Component::Agent))?;
    let after = eventually("the restarted agent's figures", PATIENCE, || {
        let counted: f64 =
            samples(&cluster.metrics(&ingress)?, "mesh_frontend_connections_total", &labels).iter().sum();
        ensure!(counted > before, "expected the counter to go on from {before}, saw {counted}");
        Ok(counted)
    })?;
    let body = download.join().map_err(|_| anyhow::anyhow!("the download panicked"))??;
    let report = load.stop()?;
    ensure!(body.body.len() == SIZE, "expected {SIZE} bytes, saw {}", body.body.len());
    ensure!(report.failures.is_empty(), "connections failed: {:?}", report.failures);
    ensure!(report.answered() > 200, "expected load to go on, saw {} answers", report.answered());
    eprintln!("connections counted: {before} before the kill, {after} after the restart");
    Ok(())
}

#[test]
fn an_agent_that_finds_an_older_table_on_its_disk_keeps_the_one_in_force() -> Result<()> {
    let cluster = cluster()?;
    let ingress = cluster.record.nodes.last().context("the lab has no node")?.clone();
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?.clone();
    if cluster.record.datapath == "userspace" {
        println!("not run: in userspace there are no maps, and a proxy has only the table on disk");
        return Ok(());
    }
    let service = Service::create(&cluster, "recalled", &["--replicas", "2", "-p", "8084:80", "whoami"])?;
    let server = SocketAddrV4::new(ingress.ip, 8084);
    let file = cluster.layout.state_dir().join(&ingress.name).join("agent/mesh-cache.json");
    let copy = file.with_extension("earlier");
    std::fs::copy(&file, &copy).context("copy the table on disk")?;
    // Replaces every task: none of the backends in the copy is left.
    let forced = ["--force", "--update-order", "start-first", "--update-parallelism", "0", "--quiet"];
    cluster.docker()?.run(&[&["service", "update"], &forced[..], &[service.name()]].concat())?;

    lab::kill(&cluster, &ingress.name, Part::One(Component::Agent))?;
    std::fs::rename(&copy, &file).context("put the earlier table back")?;
    let cut = lab::PowerCut::of_part(&cluster, &manager.name, Part::One(Component::Control))?;
    let load = LoadGenerator::start(&cluster.client(), &[server], "/", 100);
    lab::start(&cluster, &ingress.name, Part::One(Component::Agent))?;
    std::thread::sleep(Duration::from_secs(1));
    cut.restore(&cluster)?;
    let report = load.stop()?;
    ensure!(report.failures.is_empty(), "connections failed: {:?}", report.failures);
    ensure!(report.answered() > 50, "expected load to go on, saw {} answers", report.answered());
    cluster.docker()?.run(&["service", "scale", "--detach", &format!("{}=3", service.name())])?;
    eventually("the agent to follow the manager again", PATIENCE, || {
        let ask = || (0..6).map(|_| answering_task(server)).collect::<Result<BTreeSet<_>>>();
        let tasks = cluster.client().run(ask)?;
        ensure!(tasks.len() == 3, "expected answers of 3 tasks, saw {tasks:?}");
        Ok(())
    })
}

/// In userspace the proxy is part of the agent: the test is that it comes back and answers.
fn the_proxy_dies_with_its_agent(cluster: &Cluster) -> Result<()> {
    let _service = Service::create(cluster, "steady", &["--replicas", "2", "-p", "8092:80", "whoami"])?;
    let ingress = cluster.record.nodes.last().context("the lab has no node")?.clone();
    lab::kill(cluster, &ingress.name, Part::One(Component::Agent))?;
    lab::start(cluster, &ingress.name, Part::One(Component::Agent))?;
    eventually("an answer after the restart", PATIENCE, || {
        cluster.client().run(|| ask(SocketAddrV4::new(ingress.ip, 8092), "/").map(drop))
    })
}

#[test]
fn a_dead_etcd_stops_writes_but_no_reads_and_no_traffic() -> Result<()> {
    let cluster = cluster()?;
    let _service = Service::create(&cluster, "onward", &["--replicas", "2", "-p", "8093:80", "whoami"])?;
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?.clone();
    let load = LoadGenerator::start(&cluster.client(), &cluster.everywhere(8093), "/", 50);
    lab::kill(&cluster, &manager.name, Part::One(Component::Etcd))?;
    let refusal = eventually("a refusal that names etcd", PATIENCE, || {
        let refusal = cluster.docker()?.refused(&["service", "scale", "--detach", "onward=2"])?;
        ensure!(refusal.message.contains("The swarm does not have a leader."), "said: {}", refusal.message);
        ensure!(refusal.message.contains("etcd"), "said: {}", refusal.message);
        let services = cluster.docker()?.run(&["service", "ls", "--format", "{{.Name}}"])?;
        ensure!(services.contains("onward"), "the services that the manager saw last: {services}");
        Ok(refusal)
    });
    std::thread::sleep(Duration::from_secs(2));
    lab::start(&cluster, &manager.name, Part::One(Component::Etcd))?;
    let report = load.stop()?;
    refusal?;
    ensure!(report.failures.is_empty(), "connections failed while etcd was down: {:?}", report.failures);
    eventually("writes to be taken", PATIENCE, || {
        cluster.docker()?.run(&["service", "scale", "--detach", "onward=2"]).map(drop)
    })
}
