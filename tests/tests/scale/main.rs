//! Tests of many flows: a hundred thousand connections through one node, and a flood of SYNs beside
//! live connections.
#![cfg(feature = "cluster")]

mod crowd;
mod flood;

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, Docker, eventually, samples};
use mesh_lab::record::NodeRecord;
use mesh_tests::{PATIENCE, Service, cluster};

use crowd::{Crowd, Place};

/// Live connections during the flood.
const BESIDE: usize = 1000;
/// How long a new connection may take during the flood. The flood fills the queues of the client's
/// own device, so a connection loses segments, whose retransmissions come ever later.
const SLOWEST: Duration = Duration::from_mins(2);
/// The cells of a node's flow table: twice the connections that it has room for.
const CELLS: f64 = 2.0 * (262_144.0 + 65_536.0);
/// SYNs with spoofed sources, and the most that are sent until the table has been full: queues drop
/// many SYNs of a flood before a program sees them.
const SYNS: u32 = 1_000_000;
const SYNS_MAX: u32 = 8 * SYNS;
/// The processes that hold connections; one may have 20 000 descriptors at most where limits can't
/// be raised.
const CROWDS: u16 = 11;
/// The connections of one process, which holds both ends.
const EACH: usize = 9200;
/// The first published port, and the port in the task behind it.
const PORTS: (u16, u16) = (8240, 9000);

#[test]
fn a_flood_of_syns_evicts_nothing_established() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(
        &cluster,
        "flooded",
        &["--replicas", "2", "-p", "8230:80", "-p", "8237:7", "whoami"],
    )?;
    let node = cluster.record.nodes.last().context("no node")?;
    let (server, echo) = (SocketAddrV4::new(node.ip, 8230), SocketAddrV4::new(node.ip, 8237));
    let mut live = cluster.client().run(|| {
        (0..BESIDE)
            .map(|number| {
                let mut stream = TcpStream::connect_timeout(&echo.into(), PATIENCE)
                    .with_context(|| format!("connection {number}"))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                say(&mut stream, number)?;
                Ok(stream)
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let (evicted_before, expired_before) = (ended(&cluster, node, "lru")?, ended(&cluster, node, "timeout")?);
    let has_programs = cluster.record.datapath != "userspace";
    let begun = Instant::now();
    let flood = || {
        let mut sent = 0;
        while sent == 0 || has_programs && sent < SYNS_MAX && opened(&cluster, node, &service)? < 1.2 * CELLS
        {
            cluster.client().run(|| flood::send(server, sent..sent + SYNS))?;
            sent += SYNS;
        }
        Ok::<_, anyhow::Error>(sent)
    };
    let (sent, asked) = std::thread::scope(|scope| {
        let flood = scope.spawn(flood);
        let mut asked = 0;
        while !flood.is_finished() {
            let answer = cluster
                .client()
                .run(|| http::get(server, "/", SLOWEST))
                .with_context(|| format!("new connection {asked} during the flood"))?;
            ensure!(answer.status == 200, "new connection {asked} during the flood: {}", answer.status);
            asked += 1;
        }
        let sent = flood.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the flood panicked")))?;
        Ok::<_, anyhow::Error>((sent, asked))
    })?;
    println!("{sent} SYNs in {:?}, {asked} new connections meanwhile", begun.elapsed());
    for (number, stream) in live.iter_mut().enumerate() {
        say(stream, number).with_context(|| format!("connection {number} of {BESIDE} after the flood"))?;
    }
    ensure!(asked > 0, "the flood was over before a connection was tried on {}", service.name());
    if has_programs {
        eventually("the evicted flows in the metrics", PATIENCE, || {
            let evicted = ended(&cluster, node, "lru")? - evicted_before;
            let expired = ended(&cluster, node, "timeout")? - expired_before;
            let opened = opened(&cluster, node, &service)?;
            println!("half-open flows: {opened} opened, {evicted} evicted, {expired} expired");
            ensure!(opened > CELLS, "the flood opened only {opened} flows");
            // On a busy machine the flood takes longer than a SYN is remembered, and expired flows
            // make room, too.
            let too_many = opened - CELLS - expired;
            ensure!(
                evicted > 0.0 && evicted >= too_many / 2.0,
                "half-open flows evicted: {evicted} of {opened}, and {expired} expired"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// The flows of the service that a node opened.
fn opened(cluster: &Cluster, node: &NodeRecord, service: &Service) -> Result<f64> {
    let labels = [("service", service.name())];
    Ok(samples(&cluster.metrics(node)?, "mesh_frontend_connections_total", &labels).into_iter().sum())
}

/// The flows that a node's tables removed for a cause: `lru` for lack of room, `timeout` for lack
/// of an answer.
fn ended(cluster: &Cluster, node: &NodeRecord, cause: &str) -> Result<f64> {
    let labels = [("cause", cause)];
    Ok(samples(&cluster.metrics(node)?, "mesh_conntrack_evictions_total", &labels).into_iter().sum())
}

/// Sends a number to the echo and receives it.
fn say(stream: &mut TcpStream, number: usize) -> Result<()> {
    stream.write_all(&number.to_le_bytes())?;
    let mut back = [0; size_of::<usize>()];
    stream.read_exact(&mut back)?;
    ensure!(back == number.to_le_bytes(), "the echo differs from what was sent");
    Ok(())
}

#[test]
fn a_hundred_thousand_connections_hold() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        println!(
            "not run: in userspace a connection is two sockets of one process, and this tests flow tables"
        );
        return Ok(());
    }
    let home = cluster.record.nodes.iter().find(|node| !node.manager).context("no worker")?;
    let ingress = cluster.record.nodes.iter().find(|node| node.name != home.name).context("one node only")?;
    let mut arguments: Vec<String> =
        ["--replicas", "1", "--constraint", &format!("node.hostname=={}", home.name)]
            .map(str::to_owned)
            .to_vec();
    for number in 0..CROWDS {
        arguments.extend(["-p".to_owned(), format!("{}:{}", PORTS.0 + number, PORTS.1 + number)]);
    }
    arguments.extend(["busybox", "sleep", "100000"].map(str::to_owned));
    let service = Service::create(&cluster, "crowded", &arguments)?;
    let container =
        cluster.containers(service.name())?[&home.name].first().context("no container")?.0.clone();
    let pid = Docker::towards(&home.docker_host).run(&["inspect", "-f", "{{.State.Pid}}", &container])?;

    let begun = Instant::now();
    let crowds = (0..CROWDS)
        .map(|number| {
            Crowd::gather(&Place {
                client: cluster.record.client.netns.clone(),
                task: pid.trim().to_owned(),
                server: SocketAddrV4::new(ingress.ip, PORTS.0 + number),
                port: PORTS.1 + number,
                count: EACH,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut crowds = crowds;
    crowds.iter_mut().try_for_each(Crowd::wait_gathered)?;
    println!("{} connections in {:?}", usize::from(CROWDS) * EACH, begun.elapsed());
    eventually("the flows in the metrics", PATIENCE, || {
        let labels = [("protocol", "tcp"), ("table", "flows_established")];
        let entries: f64 =
            samples(&cluster.metrics(ingress)?, "mesh_conntrack_entries", &labels).iter().sum();
        ensure!(entries >= 100_000.0, "{entries} established flows at {}", ingress.name);
        Ok(())
    })?;
    crowds.into_iter().try_for_each(Crowd::speak_again)
}

/// A process that holds a share of the connections; the test above starts it.
#[test]
#[ignore = "the test above starts this with its settings"]
fn crowd() -> Result<()> {
    crowd::hold(&Place::told()?)
}
