//! A mesh-control process on loopback ports, killed when dropped.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mesh_state::cluster::Cluster;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::store::{EtcdAccess, Store as _};
use mesh_state::{codec, keys};
use tempfile::TempDir;

use super::docker::Docker;
use super::eventually;

/// The level of a manager's log.
const LOG: &str = "debug,h2=info,hyper=info,tower=info,tonic=info,rustls=info";

/// A running manager.
pub(crate) struct Manager {
    name: String,
    /// The access to its etcd; `None` if it runs one of its own.
    etcd: Option<EtcdAccess>,
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
        write_settings(&directory, LOG, "");
        Self::run(name, Some(etcd.access()), directory)
    }

    /// Starts a manager called `name` that waits for a cluster, with an etcd of its own, whose
    /// ports no other can have meanwhile. All that it has is on a disk, but for what is in
    /// `run_dir`.
    pub(crate) fn with_own_etcd(name: &str, run_dir: Option<&Path>) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let run_dir = run_dir.map(|path| format!("etcd-run-dir = \"{}\"\n", path.display()));
        write_settings(&directory, LOG, &run_dir.unwrap_or_default());
        Self::run(name, None, directory)
    }

    fn run(name: &str, etcd: Option<EtcdAccess>, directory: TempDir) -> Self {
        let listeners @ [nodes, metrics, remote] = [(); 3].map(|()| free_address());
        let child = run(name, etcd.as_ref(), &directory, listeners);
        Self { name: name.to_owned(), etcd, child, directory, nodes, metrics, remote }
    }

    /// Restarts it after [`Manager::kill`] with the same state, and waits until it serves.
    pub(crate) async fn resume(&mut self) {
        self.restart();
        self.ready().await;
    }

    /// Restarts it after [`Manager::kill`], without waiting.
    pub(crate) fn restart(&mut self) {
        let listeners = [self.nodes, self.metrics, self.remote];
        self.child = run(&self.name, self.etcd.as_ref(), &self.directory, listeners);
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
    etcd: Option<&EtcdAccess>,
    directory: &TempDir,
    [nodes, metrics, remote]: [SocketAddr; 3],
) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.path().join("log"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    if let Some(etcd) = etcd {
        let (ca, identity) = (etcd.ca.as_ref().unwrap(), etcd.identity.as_ref().unwrap());
        command.args(["--etcd", &etcd.addresses.join(","), "--advertise", "127.0.0.1"]);
        command.arg("--etcd-ca").arg(ca).arg("--etcd-cert").arg(&identity.certificate);
        command.arg("--etcd-key").arg(&identity.key).args(["--node-listen", &nodes.to_string()]);
        command.args(["--docker-listen", &remote.to_string()]);
    }
    command
        .args(["--name", name, "--metrics-listen", &metrics.to_string()])
        .arg("--config")
        .arg(settings_file(directory))
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .arg("--socket")
        .arg(directory.path().join("control.sock"))
        .stdin(Stdio::null())
        .stderr(log.unwrap())
        .spawn()
        .unwrap()
}

fn settings_file(directory: &TempDir) -> PathBuf {
    directory.path().join("control.toml")
}

/// Writes the settings of a manager: the level of its log, and `more` of them.
fn write_settings(directory: &TempDir, log: &str, more: &str) {
    std::fs::write(settings_file(directory), format!("log = \"{log}\"\n{more}")).unwrap();
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
