//! What whole-cluster tests share: the lab they run in, and services that go with the test.
//!
//! Invariants: a test leaves the lab as it found it (its services removed, its broken parts mended), whether it passes or not;
//! tests of one lab run one after the other.
//!
//! The lab is named by `MESH_LAB`: `cargo xtask test` makes one for each datapath.

#![cfg(feature = "cluster")]

pub mod deposit;
pub mod downloads;
pub mod lab;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::client::http;
use xtask::cluster::{Cluster, eventually};
use xtask::lab::layout::Layout;

/// How long a cluster may take to do what it does in its own time.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The lab that `MESH_LAB` names.
///
/// # Errors
/// When it names none, with the next step.
pub fn cluster() -> Result<Cluster> {
    let name = std::env::var("MESH_LAB").context(
        "MESH_LAB names no lab; next: cargo xtask test cluster, or cargo xtask lab up and MESH_LAB=mesh",
    )?;
    Cluster::open(Layout::new(name.parse()?))
}

/// The task that answers a request to a `whoami` service, asked from the client's namespace.
///
/// # Errors
/// When nobody answers, or with something else than `whoami`'s page.
pub fn answering_task(server: SocketAddrV4) -> Result<String> {
    let response = http::get(server, "/", http::DEADLINE)?;
    let page: serde_json::Value = serde_json::from_slice(&response.body)
        .with_context(|| format!("whoami's page: {}", response.text()))?;
    page["task"].as_str().map(str::to_owned).with_context(|| format!("no task in whoami's page: {page}"))
}

/// The task that answers a datagram to a `whoami` service, asked from where the caller is, by a socket of its own.
///
/// # Errors
/// When nobody answers three datagrams, or not as `whoami` does.
pub fn datagram_task(server: SocketAddrV4) -> Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("make a socket")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = [0; 512];
    // Datagrams may be lost: only the third one's silence is a failure.
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
    /// `docker service create --name NAME ARGS…`, waiting until it has converged.
    ///
    /// # Errors
    /// When the CLI says so.
    pub fn create(cluster: &Cluster, name: &str, args: &[impl AsRef<str>]) -> Result<Self> {
        let service = Self { name: name.to_owned(), cluster: cluster.clone() };
        let arguments: Vec<&str> = ["service", "create", "--quiet", "--name", name]
            .into_iter()
            .chain(args.iter().map(AsRef::as_ref))
            .collect();
        cluster.docker()?.run(&arguments)?;
        Ok(service)
    }

    /// Its name.
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
            eprintln!("remove service {}: {error:#}", self.name);
        }
    }
}
