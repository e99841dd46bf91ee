//! Shared by all cluster tests: the lab that they run in, and services that are removed with the
//! test.
//!
//! Invariants: a test leaves the lab as it found it (its services removed, broken parts mended),
//! whether it passes or not; tests of one lab run one after the other.
//!
//! `MESH_LAB` names the lab: `cargo xtask test` makes one for each data path.

#![cfg(feature = "cluster")]

pub mod deposit;
pub mod lab;
pub mod network;
pub mod resolver;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, eventually, samples};
use mesh_lab::layout::Layout;

/// The deadline for most changes of a cluster.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the lab in `MESH_LAB`.
///
/// # Errors
/// The variable is missing; the message names the next step.
pub fn cluster() -> Result<Cluster> {
    let name = std::env::var("MESH_LAB").context(
        "MESH_LAB names no lab; next: cargo xtask test cluster, or cargo xtask lab up and MESH_LAB=mesh",
    )?;
    Cluster::open(Layout::new(name.parse()?))
}

/// The task that answers a request to a `whoami` service, sent from the client's namespace.
///
/// # Errors
/// No answer, or another one than `whoami`'s page.
pub fn answering_task(server: SocketAddrV4) -> Result<String> {
    let response = http::get(server, "/", http::DEADLINE)?;
    let page: serde_json::Value = serde_json::from_slice(&response.body)
        .with_context(|| format!("whoami's page: {}", response.text()))?;
    page["task"].as_str().map(str::to_owned).with_context(|| format!("no task in whoami's page: {page}"))
}

/// The task that answers a datagram to a `whoami` service, sent from the thread's namespace, by a
/// socket of its own.
///
/// # Errors
/// No answer to three datagrams, or another one than `whoami`'s.
pub fn datagram_task(server: SocketAddrV4) -> Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("make a socket")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = [0; 512];
    // Datagrams may be lost: only silence after the third one is a failure.
    let length = (0..3)
        .find_map(|_| socket.send(b"who?").and_then(|_| socket.recv(&mut answer)).ok())
        .with_context(|| format!("{server} answers no datagram"))?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let head = answer.lines().next().unwrap_or_default();
    let task = head.split(' ').find_map(|word| word.strip_prefix("task="));
    task.map(str::to_owned).with_context(|| format!("no task in whoami's answer: {answer:?}"))
}

/// A service that is removed when the test ends.
#[derive(Debug)]
pub struct Service {
    name: String,
    cluster: Cluster,
}

impl Service {
    /// `docker service create --detach --name NAME ARGS…`, then waits until all its tasks run and
    /// every node selects them. With `--detach` in `args` it doesn't wait.
    ///
    /// # Errors
    /// The CLI refuses it, or the wait takes too long.
    pub fn create(cluster: &Cluster, name: &str, args: &[impl AsRef<str>]) -> Result<Self> {
        let service = Self::create_by(cluster, "--detach", name, args)?;
        if !args.iter().any(|argument| argument.as_ref() == "--detach") {
            service.wait_selected()?;
        }
        Ok(service)
    }

    /// `docker service create --name NAME ARGS…`, waiting as long as the CLI does: five seconds
    /// longer, or until a job is complete.
    ///
    /// # Errors
    /// The CLI fails.
    pub fn create_verified(cluster: &Cluster, name: &str, args: &[impl AsRef<str>]) -> Result<Self> {
        Self::create_by(cluster, "--quiet", name, args)
    }

    fn create_by(cluster: &Cluster, how: &str, name: &str, args: &[impl AsRef<str>]) -> Result<Self> {
        let service = Self { name: name.to_owned(), cluster: cluster.clone() };
        let arguments: Vec<&str> = ["service", "create", how, "--name", name]
            .into_iter()
            .chain(args.iter().map(AsRef::as_ref))
            .collect();
        cluster.docker()?.run(&arguments)?;
        Ok(service)
    }

    fn wait_selected(&self) -> Result<()> {
        let docker = self.cluster.docker()?;
        let text = docker.run(&["service", "inspect", "--format", "{{json .}}", &self.name])?;
        let inspected: serde_json::Value = serde_json::from_str(&text).context("parse the service")?;
        let replicas = inspected["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64();
        let ports = inspected["Endpoint"]["Ports"].as_array().map_or(&[][..], Vec::as_slice);
        let published = ports.iter().filter(|port| port["PublishMode"] == "ingress").count();
        eventually(&format!("{} to be served everywhere", self.name), PATIENCE, || {
            let rows = docker.tasks(&self.name)?;
            let wanted: Vec<_> = rows.iter().filter(|row| row.desired_state == "Running").collect();
            let is_enough = replicas.map_or(!wanted.is_empty(), |replicas| wanted.len() as u64 == replicas);
            ensure!(is_enough && wanted.iter().all(|row| row.is_running()), "tasks: {rows:#?}");
            for node in &self.cluster.record.nodes {
                let labels = [("service", self.name()), ("state", "active")];
                let active = samples(&self.cluster.metrics(node)?, "mesh_frontend_backends", &labels);
                let selected: f64 = active.iter().sum();
                #[expect(clippy::cast_precision_loss, reason = "few tasks")]
                let expected = (wanted.len() * published) as f64;
                ensure!(
                    (selected - expected).abs() < 0.5,
                    "{} selects {active:?}, not {expected}",
                    node.name
                );
            }
            Ok(())
        })
    }

    /// The service's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let removed = self.cluster.docker().and_then(|docker| docker.run(&["service", "rm", &self.name]));
        let gone = removed.and_then(|_| {
            eventually("no container of the service", PATIENCE, || {
                let left = self.cluster.containers(&self.name)?;
                ensure!(left.values().all(Vec::is_empty), "containers: {left:?}");
                Ok(())
            })
        });
        if let Err(error) = gone {
            eprintln!("can't remove service {}: {error:#}", self.name);
        }
    }
}
