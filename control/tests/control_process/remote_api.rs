//! The Docker API for clients on other machines, with the unmodified docker CLI: who gets in, who
//! is refused before a request is read, and that a revoked client is out at once.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper::Method;
use mesh_control::ca::{Authority, MEMBER_LIFE, create_authority};
use mesh_control::context::CA_KEY;
use mesh_control::seal::Sealer;
use mesh_state::cluster::Cluster;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::node::NodeRole;
use mesh_state::remote_client::RemoteClient;
use mesh_state::store::{EtcdAccess, EtcdIdentity, EtcdStore, Op, Store as _};
use mesh_state::{codec, keys};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tonic::Code;

use crate::support::control_process::{Manager, ca_pem};
use crate::support::eventually;
use crate::support::node::{Member, Session};

/// Whether there is a docker CLI. In CI its absence is a failure.
fn has_docker() -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join("docker").is_file()));
    assert!(found || std::env::var_os("CI").is_none(), "the docker CLI is not installed");
    if !found {
        println!("skipped: the docker CLI is not installed");
    }
    found
}

/// The docker CLI with the files in `directory`, towards a manager's remote API. It has no other
/// files to fall back to.
fn docker(directory: &Path, manager: &Manager, words: &str) -> Command {
    let mut command = Command::new("docker");
    command.args(["--tlsverify", "--tlscacert"]).arg(directory.join("ca.pem"));
    for (flag, file) in [("--tlscert", "cert.pem"), ("--tlskey", "key.pem")] {
        let path = directory.join(file);
        if path.exists() {
            command.arg(flag).arg(path);
        }
    }
    command.args(["-H", &format!("tcp://{}", manager.remote)]).args(words.split(' '));
    command.env("HOME", directory).env_remove("DOCKER_CONTEXT").env_remove("DOCKER_CERT_PATH");
    command.env("DOCKER_CONFIG", directory.join("config")).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What docker printed: the result, or why it failed.
fn said(output: &Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

async fn run(directory: &Path, manager: &Manager, words: &str) -> Result<String, String> {
    let ran = tokio::time::timeout(Duration::from_secs(30), docker(directory, manager, words).output());
    said(&ran.await.expect("docker ends in time").unwrap())
}

/// `mesh client`, on the manager's machine.
async fn mesh_client(manager: &Manager, words: &[&str]) -> Result<String, String> {
    let socket = manager.docker().socket;
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    said(&command.arg("client").arg("--socket").arg(socket).args(words).output().await.unwrap())
}

async fn create(manager: &Manager, name: &str, out: &Path) -> String {
    mesh_client(manager, &["create", name, "--out", &out.display().to_string()]).await.unwrap()
}

/// A counter of the manager's metrics; all series whose line has each of `parts`, together.
async fn counted(manager: &Manager, parts: &[&str]) -> u64 {
    let metrics = manager.admin("metrics").await.unwrap();
    let lines = metrics.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_commands_the_cluster_from_another_machine_until_it_is_revoked() {
    if !has_docker() {
        return;
    }
    let etcd = EtcdProcess::start().await.unwrap();
    let first = Manager::start("m1", &etcd, None).await;
    let second = Manager::start("m2", &etcd, Some(&first)).await;
    let home = tempfile::tempdir().unwrap();
    let alice = home.path().join("alice");
    let store = etcd.store().await.unwrap();
    eventually("the manager's record", async || store.get(&keys::manager("m1")).await.ok().flatten()).await;
    let instructions = create(&first, "alice", &alice).await;
    assert!(instructions.contains(&format!("tcp://{}", first.remote)), "{instructions}");
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        let mode = std::fs::metadata(alice.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let elsewhere = home.path().join("b").display().to_string();
    let refused = mesh_client(&first, &["create", "alice", "--out", &elsewhere]).await.unwrap_err();
    assert!(refused.contains("mesh client revoke alice"), "{refused}");
    assert!(!home.path().join("b/key.pem").exists(), "a key without a certificate was left behind");

    // An answer without an end, over the second manager.
    let mut events =
        docker(&alice, &second, "events --filter type=service").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    run(&alice, &first, "service create -d --name web --publish 80:80 nginx:latest").await.unwrap();
    let listed = run(&alice, &second, "service ls --format {{.Name}}={{.Ports}}").await;
    assert_eq!(listed.as_deref(), Ok("web=*:80->80/tcp"));
    // The stream may have begun after the first event.
    let seen = tokio::time::timeout(Duration::from_secs(30), async {
        for number in 0.. {
            let label = format!("service update -d --label-add n={number} web");
            run(&alice, &first, &label).await.unwrap();
            if let Ok(line) = tokio::time::timeout(Duration::from_secs(2), lines.next_line()).await {
                return line.unwrap().unwrap();
            }
        }
        String::new()
    });
    let seen = seen.await.expect("an event comes");
    assert!(seen.contains("service") && seen.contains("web"), "{seen}");
    let log = first.log();
    let line =
        log.lines().find(|line| line.contains("a remote client's call")).expect("a line for the write");
    assert!(line.contains("alice") && line.contains("/services/create") && line.contains("201"), "{line}");

    let listed = mesh_client(&second, &["ls"]).await.unwrap();
    assert!(listed.lines().any(|line| line.starts_with("alice") && line.contains("valid")), "{listed}");
    mesh_client(&second, &["revoke", "alice"]).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), events.wait()).await;
    ended.expect("the stream of a revoked client ends").unwrap();
    for manager in [&first, &second] {
        eventually("a refusal", async || run(&alice, manager, "service ls").await.err()).await;
        let why = run(&alice, manager, "service ls").await.unwrap_err();
        assert!(why.contains("revoked certificate"), "{why}");
    }
    let missing = mesh_client(&first, &["revoke", "alice"]).await.unwrap_err();
    assert!(missing.contains("no client is called alice"), "{missing}");
}

/// A key with certificates for it, whoever signs them.
struct Forge {
    authority: Authority,
    /// The id of the cluster whose CA it has; `None` if that is no cluster's.
    cluster: Option<String>,
    key: KeyPair,
    request: String,
}

impl Forge {
    fn new(authority: Authority) -> Self {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        Self { authority, cluster: None, key, request }
    }

    /// One that has the cluster's CA.
    async fn of_cluster(etcd: &EtcdProcess, manager: &Manager) -> Self {
        let item = etcd.store().await.unwrap().get(keys::CLUSTER).await.unwrap().unwrap();
        let cluster: Cluster = codec::decode(&item.value).unwrap();
        let sealer = Sealer::load(&manager.data().join("key"), None).unwrap().unwrap();
        let ca_key = sealer.open(CA_KEY, &cluster.ca_key).unwrap();
        let key_pem = std::str::from_utf8(&ca_key).unwrap();
        let authority = Authority::load(&cluster.ca_certificate_pem, key_pem).unwrap();
        Self { cluster: Some(cluster.id.to_string()), ..Self::new(authority) }
    }

    fn node(&self, id: &str, role: NodeRole) -> String {
        self.authority.sign_member(&self.request, &id.into(), role, MEMBER_LIFE, Utc::now()).unwrap()
    }

    /// A client's certificate issued at `issued`, and the record that the cluster would have of it.
    fn client(&self, name: &str, issued: DateTime<Utc>) -> (String, RemoteClient) {
        let signed = self.authority.sign_client(&self.request, name, MEMBER_LIFE, issued).unwrap();
        let record = RemoteClient {
            name: name.to_owned(),
            certificate: signed.digest,
            issuer: self.authority.digest(),
            created_at: issued,
            until: signed.until,
        };
        (signed.pem, record)
    }

    /// The files of somebody with this certificate, who trusts the cluster's CA.
    fn files(&self, home: &Path, name: &str, ca: &str, certificate: Option<&str>) -> PathBuf {
        let directory = home.join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("ca.pem"), ca).unwrap();
        if let Some(certificate) = certificate {
            std::fs::write(directory.join("cert.pem"), certificate).unwrap();
            std::fs::write(directory.join("key.pem"), self.key.serialize_pem()).unwrap();
        }
        directory
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_before_a_request_is_read() {
    if !has_docker() {
        return;
    }
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (ca, home) = (ca_pem(&etcd).await, tempfile::tempdir().unwrap());
    let own = Forge::of_cluster(&etcd, &manager).await;
    let cluster = own.cluster.clone().unwrap();
    let [foreign, namesake] = ["elsewhere", &cluster].map(|cluster| {
        let new = create_authority(&cluster.into(), Utc::now()).unwrap();
        Forge::new(Authority::load(&new.certificate_pem, &new.key_pem).unwrap())
    });
    let (good, known) = own.client("good", Utc::now());
    let (unknown, _) = own.client("good", Utc::now() - chrono::Duration::hours(1));
    let (late, late_record) = own.client("late", Utc::now() - MEMBER_LIFE - chrono::Duration::hours(1));
    let (strange, strange_record) = foreign.client("strange", Utc::now());
    let (forged, forged_record) = namesake.client("forged", Utc::now());
    // Records, so that nothing but the certificate is wrong.
    let store = etcd.store().await.unwrap();
    let records = [&known, &late_record, &strange_record, &forged_record]
        .map(|record| Op::put(keys::client(&record.name), codec::encode(record).unwrap()));
    store.txn(vec![], records.to_vec()).await.unwrap();
    let directory = own.files(home.path(), "good", &ca, Some(&good));
    eventually("the known client to be served", async || run(&directory, &manager, "service ls").await.ok())
        .await;

    let requests = counted(&manager, &["mesh_api_requests_total{"]).await;
    let strangers = [
        ("no certificate", &own, None, "certificate required"),
        ("a worker's", &own, Some(own.node("w1", NodeRole::Worker)), "access denied"),
        ("a manager's", &own, Some(own.node("m1", NodeRole::Manager)), "access denied"),
        ("one that is not in the record", &own, Some(unknown), "revoked certificate"),
        ("an expired one", &own, Some(late), "expired certificate"),
        // docker shows no certificate of a CA that the manager doesn't name.
        ("a foreign CA's", &foreign, Some(strange), "certificate required"),
        ("that of a CA of the cluster's name", &namesake, Some(forged), "unknown certificate authority"),
    ];
    for (number, (what, forge, certificate, expected)) in strangers.iter().enumerate() {
        let directory = forge.files(home.path(), &number.to_string(), &ca, certificate.as_deref());
        let why = run(&directory, &manager, "service ls").await.expect_err(what);
        assert!(why.contains(expected), "with {what}: {why}");
        // openssl shows what it has, whatever the manager names.
        if certificate.is_some() {
            let answer = served_path(&directory, &manager, "/v1.41/services").await;
            assert_eq!(answer, "", "with {what}");
        }
    }
    let refused = counted(&manager, &["mesh_refusals_total{", "remote-api", "stranger"]).await;
    assert!(refused >= 13, "{refused} refusals were counted");
    assert_eq!(
        counted(&manager, &["mesh_api_requests_total{"]).await,
        requests,
        "a stranger's request was read"
    );

    // In clear, there is no answer at all.
    let mut clear = tokio::net::TcpStream::connect(manager.remote).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut clear, b"GET /_ping HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut clear, &mut answer);
    drop(tokio::time::timeout(Duration::from_secs(10), read).await.expect("the connection is closed"));
    assert!(!answer.windows(4).any(|part| part == b"HTTP"), "an answer in clear: {answer:?}");

    // What is root's alone on the manager's machine isn't served.
    for (words, why) in [
        ("swarm leave --force", "on the node's own docker.sock"),
        ("swarm init", "already part of a swarm"),
        ("ps", "docker -H ssh://NODE"),
    ] {
        let refused = run(&directory, &manager, words).await.expect_err(words);
        assert!(refused.contains(why), "{words}: {refused}");
    }
    let (status, _) = manager.docker().call(Method::GET, "/mesh/clients", None).await.unwrap();
    assert_eq!(status, 200, "the control socket lists clients");
    assert!(served_path(&directory, &manager, "/mesh/clients").await.starts_with("HTTP/1.1 404"));
    assert!(served_path(&directory, &manager, "/v1.41/services").await.starts_with("HTTP/1.1 200"));
}

/// The beginning of the answer to a GET request over TLS, by openssl with the client's files.
async fn served_path(directory: &Path, manager: &Manager, path: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-connect", &manager.remote.to_string()]);
    for (flag, file) in [("-CAfile", "ca.pem"), ("-cert", "cert.pem"), ("-key", "key.pem")] {
        command.arg(flag).arg(directory.join(file));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut stdin = child.stdin.take().unwrap();
    // openssl has ended already if the manager refused it at once.
    drop(tokio::io::AsyncWriteExt::write_all(&mut stdin, request.as_bytes()).await);
    let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await;
    String::from_utf8_lossy(&output.expect("the answer ends").unwrap().stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_certificate_opens_nothing_of_nodes_or_etcd() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (ca, home) = (ca_pem(&etcd).await, tempfile::tempdir().unwrap());
    let token = manager.join_token();
    let node = crate::support::node::join(manager.nodes, &token, &ca, "node-1").await.unwrap();
    create(&manager, &node.id, &home.path().join("x")).await;
    let file = |name: &str| home.path().join("x").join(name);
    let text = |name: &str| std::fs::read_to_string(file(name)).unwrap();
    let (certificate_pem, key_pem) = (text("cert.pem"), text("key.pem"));
    // Its name is the id of a node that is a member.
    let client = Member { id: node.id.clone(), key_pem, certificate_pem, ca_pem: ca };
    let refused = Session::open(manager.nodes, &client, 0).await.err().expect("a session was opened");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let refused = client.renew(manager.nodes).await.err().expect("it was renewed as a node's");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");

    let identity = EtcdIdentity { certificate: file("cert.pem"), key: file("key.pem") };
    let store = EtcdStore::open(EtcdAccess { identity: Some(identity), ..etcd.access() }).await;
    let read = match store {
        Ok(store) => tokio::time::timeout(Duration::from_secs(20), store.get(keys::CLUSTER)).await.ok(),
        Err(_) => None,
    };
    assert!(!matches!(read, Some(Ok(_))), "etcd took a client of the Docker API");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_of_the_ca_only_new_certificates_are_taken() {
    if !has_docker() {
        return;
    }
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let home = tempfile::tempdir().unwrap();
    let (before, after) = (home.path().join("before"), home.path().join("after"));
    create(&manager, "alice", &before).await;
    let mut swarm = manager.docker().get("/swarm").await.unwrap().1;
    swarm["Spec"]["CAConfig"]["ForceRotate"] = json!(1);
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    let (status, answer) = manager.docker().call(Method::POST, &path, Some(&swarm["Spec"])).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    eventually("the end of the rotation", async || {
        let (_, swarm) = manager.docker().get("/swarm").await.ok()?;
        (swarm["RootRotationInProgress"] != json!(true)).then_some(())
    })
    .await;
    let listed = mesh_client(&manager, &["ls"]).await.unwrap();
    assert!(listed.contains("former CA"), "{listed}");
    create(&manager, "alice", &after).await;
    eventually("the new certificate to be taken", async || run(&after, &manager, "node ls").await.ok()).await;
    // It knows the manager, which does not know it.
    std::fs::copy(after.join("ca.pem"), before.join("ca.pem")).unwrap();
    let why = run(&before, &manager, "node ls").await.unwrap_err();
    assert!(why.contains("unknown certificate authority"), "{why}");
}
