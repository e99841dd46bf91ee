//! A mesh-control process on loopback ports, killed when dropped.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use mesh_state::cluster::Cluster;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::store::{EtcdAccess, Store as _};
use mesh_state::{codec, keys};
use tempfile::TempDir;

use super::docker::Docker;
use super::eventually;

/// A running manager.
pub(crate) struct Manager {
    name: String,
    etcd: EtcdAccess,
    pub(crate) child: Child,
    pub(crate) directory: TempDir,
    pub(crate) nodes: SocketAddr,
    pub(crate) metrics: SocketAddr,
    /// The Docker API over TLS.
    pub(crate) remote: SocketAddr,
}

impl Manager {
    /// Starts a manager called `name` on `etcd`, with the key file of `first` if that is given.
    pub(crate) fn spawn(name: &str, etcd: &EtcdProcess, first: Option<&Manager>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if let Some(first) = first {
            std::fs::create_dir(directory.path().join("data")).unwrap();
            std::fs::copy(first.data().join("key"), directory.path().join("data/key")).unwrap();
        }
        let listeners @ [nodes, metrics, remote] = [(); 3].map(|()| free_address());
        let child = run(name, &etcd.access(), &directory, listeners);
        Self { name: name.to_owned(), etcd: etcd.access(), child, directory, nodes, metrics, remote }
    }

    /// Restarts it after [`Manager::kill`] with the same state, and waits until it serves.
    pub(crate) async fn resume(&mut self) {
        self.restart();
        self.ready().await;
    }

    /// Restarts it after [`Manager::kill`], without waiting.
    pub(crate) fn restart(&mut self) {
        let listeners = [self.nodes, self.metrics, self.remote];
        self.child = run(&self.name, &self.etcd, &self.directory, listeners);
    }

    async fn ready(&self) {
        eventually("a ready manager", async || self.admin("readyz").await.filter(|text| text == "ok\n"))
            .await;
    }

    /// Starts a manager and waits until it serves.
    pub(crate) async fn start(name: &str, etcd: &EtcdProcess, first: Option<&Manager>) -> Self {
        let manager = Self::spawn(name, etcd, first);
        manager.ready().await;
        manager
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn docker(&self) -> Docker {
        Docker { socket: self.directory.path().join("control.sock") }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    pub(crate) fn join_token(&self) -> String {
        std::fs::read_to_string(self.data().join("join-token-worker")).unwrap().trim().to_owned()
    }

    /// The answer of the metrics port, if its status is 200.
    pub(crate) async fn admin(&self, path: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.metrics).await.ok()?;
        let request = format!("GET /{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the manager at {}:\n{}", self.nodes, self.log());
        }
    }
}

/// The CA that nodes of this cluster trust.
pub(crate) async fn ca_pem(etcd: &EtcdProcess) -> String {
    let item = etcd.store().await.unwrap().get(keys::CLUSTER).await.unwrap().unwrap();
    codec::decode::<Cluster>(&item.value).unwrap().ca_certificate_pem
}

/// Starts a mesh-control process that logs to a file.
fn run(
    name: &str,
    etcd: &EtcdAccess,
    directory: &TempDir,
    [nodes, metrics, remote]: [SocketAddr; 3],
) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.path().join("log"));
    let (ca, identity) = (etcd.ca.as_ref().unwrap(), etcd.identity.as_ref().unwrap());
    Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .arg("--etcd-ca")
        .arg(ca)
        .arg("--etcd-cert")
        .arg(&identity.certificate)
        .arg("--etcd-key")
        .arg(&identity.key)
        .args(["--etcd", &etcd.addresses.join(","), "--name", name, "--advertise", "127.0.0.1"])
        .args(["--node-listen", &nodes.to_string(), "--metrics-listen", &metrics.to_string()])
        .args(["--docker-listen", &remote.to_string()])
        .args(["--log", "debug,h2=info,hyper=info,tower=info,tonic=info,rustls=info"])
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .arg("--socket")
        .arg(directory.path().join("control.sock"))
        .stdin(Stdio::null())
        .stderr(log.unwrap())
        .spawn()
        .unwrap()
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
