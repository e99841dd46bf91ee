//! A container as its engine describes it, and the servers that it reaches.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, Docker};
use mesh_lab::netns::Netns;
use serde_json::Value;

use crate::dns::{self, Question, Reply};

/// The time in which a server must answer to count as reached.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const HTTP: u16 = 80;
const UDP_ECHO: u16 = 9;

/// A running container: a task's, or one that was started by hand.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) node: String,
    /// `SERVICE.SLOT.TASKID`, or the container's name.
    pub(crate) name: String,
    /// The container's full id.
    pub(crate) container: String,
    pub(crate) hostname: String,
    /// The first server in the container's resolv.conf.
    pub(crate) resolver: Ipv4Addr,
    /// The container's address on each of the engine's networks.
    addresses: BTreeMap<String, Ipv4Addr>,
    pid: u32,
}

/// A protocol to reach a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Tcp,
    Udp,
    Icmp,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];
}

/// The running tasks of a service with at most one task a node, by node name.
pub(crate) fn of_service(cluster: &Cluster, service: &str) -> Result<BTreeMap<String, Task>> {
    let mut found = BTreeMap::new();
    for (node, containers) in cluster.containers(service)? {
        for (id, _) in containers {
            found.insert(node.clone(), of_container(cluster, &node, &id)?);
        }
    }
    Ok(found)
}

/// The container with this name or id.
pub(crate) fn of_container(cluster: &Cluster, node: &str, id: &str) -> Result<Task> {
    let engine = Docker::towards(&cluster.node(node)?.docker_host);
    let text = engine.run(&["inspect", "--format", "{{json .}}", id])?;
    let container: Value = serde_json::from_str(&text).context("understand the container")?;
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let labelled = word(&container["Config"]["Labels"]["com.docker.swarm.task.name"]);
    let name = labelled.or_else(|| word(&container["Name"]).map(|name| name.trim_matches('/').to_owned()));
    let networks = container["NetworkSettings"]["Networks"].as_object().into_iter().flatten();
    let addresses = networks
        .filter_map(|(network, at)| Some((network.clone(), at["IPAddress"].as_str()?.parse().ok()?)))
        .collect();
    let pid = container["State"]["Pid"].as_u64().filter(|pid| *pid > 0);
    let pid = u32::try_from(pid.with_context(|| format!("{id} on {node} doesn't run"))?)?;
    Ok(Task {
        resolver: resolver(pid)?,
        node: node.to_owned(),
        name: name.context("a container without a name")?,
        container: word(&container["Id"]).context("a container without an id")?,
        hostname: word(&container["Config"]["Hostname"]).context("a container without a host name")?,
        addresses,
        pid,
    })
}

/// The first server in a process' resolv.conf, read in its mount namespace.
fn resolver(pid: u32) -> Result<Ipv4Addr> {
    let path = format!("/proc/{pid}/root/etc/resolv.conf");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let first = text.lines().find_map(|line| line.strip_prefix("nameserver "));
    let first = first.with_context(|| format!("no name server in {path}: {text}"))?;
    first.trim().parse().with_context(|| format!("a name server in {path}: {first}"))
}

impl Task {
    /// The container's address on a network.
    pub(crate) fn address(&self, network: &str) -> Result<Ipv4Addr> {
        self.addresses.get(network).copied().with_context(|| {
            format!("expected {} to have an address on {network}, saw {:?}", self.name, self.addresses)
        })
    }

    /// The first twelve digits of the container's id.
    pub(crate) fn short_id(&self) -> &str {
        self.container.get(..12).unwrap_or(&self.container)
    }

    /// Runs `work` in the container's network namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        Netns::of_process(self.pid).run(work).with_context(|| format!("at {} on {}", self.name, self.node))
    }

    /// Asks the container's own resolver.
    pub(crate) fn ask(&self, question: Question<'_>) -> Result<Reply> {
        self.inside(|| dns::ask(self.resolver, question, dns::Transport::Udp, dns::PATIENCE))
    }

    /// The page of the `whoami` server at `server`: its task's name, and the client that it saw.
    pub(crate) fn whoami(&self, server: Ipv4Addr) -> Result<(String, String)> {
        let answer = self.inside(|| http::get(SocketAddrV4::new(server, HTTP), "/", http::DEADLINE))?;
        let page: Value = serde_json::from_slice(&answer.body).context("understand whoami's page")?;
        let text =
            |key: &str| page[key].as_str().map(str::to_owned).with_context(|| format!("no {key}: {page}"));
        Ok((text("task")?, text("client")?))
    }

    /// Whether a `whoami` server at `address` answers over this protocol.
    pub(crate) fn reaches(&self, way: Way, address: Ipv4Addr) -> Result<bool> {
        match way {
            Way::Tcp => self.inside(|| {
                let server = SocketAddrV4::new(address, HTTP);
                Ok(TcpStream::connect_timeout(&server.into(), ANSWER_WITHIN).is_ok())
            }),
            Way::Udp => self.inside(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("make a socket")?;
                socket.set_read_timeout(Some(ANSWER_WITHIN)).context("set the deadline")?;
                let asked = socket
                    .connect(SocketAddrV4::new(address, UDP_ECHO))
                    .and_then(|()| socket.send(b"who?"))
                    .and_then(|_| socket.recv(&mut [0; 512]));
                Ok(asked.is_ok())
            }),
            Way::Icmp => self.pings(address),
        }
    }

    fn pings(&self, address: Ipv4Addr) -> Result<bool> {
        let status = Command::new("nsenter")
            .arg(format!("--net={}", Netns::of_process(self.pid).path().display()))
            .args(["busybox", "ping", "-c", "1", "-W", "1", &address.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("start ping")?;
        ensure!(status.code().is_some_and(|code| code <= 1), "ping: {status}");
        Ok(status.success())
    }
}
