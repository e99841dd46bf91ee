//! Backups over the control socket, with `mesh` as the client: saved, and restored onto the cluster
//! that goes on, and into another etcd.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Method;
use mesh_backup::{files, sealed};
use mesh_control::refill::refill;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::store::Store as _;
use mesh_state::{codec, keys};
use serde_json::{Value, json};

use crate::support::control_process::{Manager, ca_pem};
use crate::support::eventually;
use crate::support::node::{Member, Session, join};
use crate::{create, service};

/// A file with a passphrase.
fn passphrase(directory: &Path) -> PathBuf {
    let path = directory.join("passphrase");
    std::fs::write(&path, "correct horse battery\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Runs `mesh backup` on the manager.
fn mesh_backup(manager: &Manager, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesh"))
        .args(["--output", "json", "backup"])
        .args(arguments)
        .arg("--passphrase-file")
        .arg(passphrase(manager.directory.path()))
        .arg("--control-socket")
        .arg(manager.directory.path().join("control.sock"))
        .output()
        .unwrap()
}

/// Runs it, and reads what it answers.
fn answer(manager: &Manager, arguments: &[&str]) -> Value {
    let output = mesh_backup(manager, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn secret(manager: &Manager, name: &str) -> String {
    let body = json!({"Name": name, "Labels": {}, "Data": BASE64.encode("value")});
    let (status, made) = manager.docker().call(Method::POST, "/secrets/create", Some(&body)).await.unwrap();
    assert_eq!(status, 201, "{made}");
    made["ID"].as_str().unwrap().to_owned()
}

async fn names(manager: &Manager, path: &str) -> Vec<String> {
    let (_, all) = manager.docker().get(path).await.unwrap();
    let all = all.as_array().unwrap().iter();
    let mut names: Vec<String> = all.map(|one| one["Spec"]["Name"].as_str().unwrap().to_owned()).collect();
    names.sort_unstable();
    names
}

async fn remove(manager: &Manager, path: &str) {
    let (status, said) = manager.docker().call(Method::DELETE, path, None).await.unwrap();
    assert!((200..300).contains(&status), "{path}: {said}");
}

/// Replaces the token of workers.
async fn rotate_token(manager: &Manager) {
    let (_, swarm) = manager.docker().get("/swarm").await.unwrap();
    let path = format!("/swarm/update?version={}&rotateWorkerToken=true", swarm["Version"]["Index"]);
    let (status, said) = manager.docker().call(Method::POST, &path, Some(&swarm["Spec"])).await.unwrap();
    assert_eq!(status, 200, "{said}");
}

async fn tokens(manager: &Manager) -> Value {
    manager.docker().get("/swarm").await.unwrap().1["JoinTokens"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_restored_onto_its_cluster_and_into_a_new_etcd() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let ca = ca_pem(&etcd).await;
    let member = join(manager.nodes, &manager.join_token(), &ca, "node-1").await.unwrap();
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    create(&manager, &service("kept", 8081)).await;
    let gone = create(&manager, &service("gone", 8082)).await;
    let password = secret(&manager, "password").await;
    let task =
        session.until("the task", |seen| Some(seen.assignments.first()?.task.id.to_string())).await.unwrap();
    let first_tokens = tokens(&manager).await;

    let file = manager.directory.path().join("one.mesh-backup");
    let file = file.to_str().unwrap();
    let saved = answer(&manager, &["save", file]);
    assert_eq!(saved["manifest"]["format"], 1, "{saved}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = mesh_backup(&manager, &["save", file]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists already"), "overwritten");
    assert_eq!(answer(&manager, &["restore", "--dry-run", file])["Changes"], json!([]), "nothing changed");

    // What changes after the backup.
    remove(&manager, &format!("/services/{gone}")).await;
    remove(&manager, &format!("/secrets/{password}")).await;
    create(&manager, &service("later", 8083)).await;
    rotate_token(&manager).await;
    let changed = names(&manager, "/services").await;
    let dry = answer(&manager, &["restore", "--dry-run", file]);
    assert_eq!(dry["Changes"].as_array().unwrap().len(), 4, "{dry}");
    assert_eq!(names(&manager, "/services").await, changed, "a dry run");

    let kept = async || {
        let (_, all) = manager.docker().get("/services").await.unwrap();
        let all = all.as_array().unwrap().clone();
        all.into_iter().find(|one| one["Spec"]["Name"] == "kept").unwrap()
    };
    let before = kept().await;
    let restored = answer(&manager, &["restore", file]);
    assert_eq!((&restored["Changes"], &restored["Left"]), (&dry["Changes"], &json!([])));
    assert_eq!(names(&manager, "/services").await, ["gone", "kept"]);
    assert_eq!(names(&manager, "/secrets").await, ["password"]);
    assert_eq!(tokens(&manager).await, first_tokens);
    assert_eq!(kept().await, before, "a service that did not differ was written");
    let (status, _) = manager.docker().get(&format!("/tasks/{task}")).await.unwrap();
    assert_eq!(status, 200, "its task is the one of before");
    join(manager.nodes, first_tokens["Worker"].as_str().unwrap(), &ca, "node-2").await.unwrap();

    comes_back_from_a_new_etcd(&manager, (session, &member), &task, Path::new(file)).await;
}

/// Restores the backup into a new etcd, to which the node comes back with the table of the old one.
async fn comes_back_from_a_new_etcd(
    manager: &Manager,
    (session, member): (Session, &Member),
    task: &str,
    file: &Path,
) {
    let first_tokens = tokens(manager).await;
    let had = session.tables.last().unwrap().generation;
    drop(session);
    let sealed = files::read(file).unwrap();
    let passphrase = files::passphrase(&passphrase(manager.directory.path())).unwrap();
    let backup = sealed::open(&sealed, &passphrase).unwrap();
    let fresh = EtcdProcess::start().await.unwrap();
    refill(&fresh.store().await.unwrap(), &backup, chrono::Utc::now()).await.unwrap();
    let second = Manager::start("m1", &fresh, Some(manager)).await;
    assert_eq!(names(&second, "/services").await, ["gone", "kept"]);
    assert_eq!(names(&second, "/secrets").await, ["password"]);
    assert_eq!(tokens(&second).await, first_tokens);
    let mut session = Session::open(second.nodes, member, 0).await.unwrap();
    let seen = session
        .until("its tasks and a table", |seen| {
            let known = seen.assignments.iter().any(|one| one.task.id.as_str() == task);
            known.then(|| seen.tables.last().map(|table| table.generation)).flatten()
        })
        .await
        .unwrap();
    assert!(seen > had, "generation {seen} is not newer than {had} of the former etcd");
    eventually("a write under compares", async || {
        let (_, services) = second.docker().get("/services").await.ok()?;
        let (id, version) = (services[0]["ID"].as_str()?, services[0]["Version"]["Index"].as_i64()?);
        let path = format!("/services/{id}/update?version={version}");
        let updated = second.docker().call(Method::POST, &path, Some(&services[0]["Spec"])).await.ok()?;
        (updated.0 == 200 && version > i64::try_from(had).ok()?).then_some(())
    })
    .await;
    let record = fresh.store().await.unwrap().get(keys::CLUSTER).await.unwrap().unwrap();
    let record: mesh_state::cluster::Cluster = codec::decode(&record.value).unwrap();
    assert!(record.revision_base > 0 && record.id == backup.manifest().cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_another_cluster_and_a_wrong_passphrase_are_refused() {
    let (etcd, other) = (EtcdProcess::start().await.unwrap(), EtcdProcess::start().await.unwrap());
    let first = Manager::start("m1", &etcd, None).await;
    let second = Manager::start("m1", &other, None).await;
    create(&first, &service("theirs", 8081)).await;
    secret(&first, "password").await;
    create(&second, &service("ours", 8082)).await;
    let own_tokens = tokens(&second).await;
    let file = first.directory.path().join("one.mesh-backup");
    let file = file.to_str().unwrap();
    answer(&first, &["save", file]);
    let refused = mesh_backup(&second, &["restore", file]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("the backup is of cluster"), "{said}");
    assert_eq!(names(&second, "/services").await, ["ours"]);
    answer(&second, &["restore", "--force", file]);
    assert_eq!(names(&second, "/services").await, ["theirs"]);
    assert_eq!(names(&second, "/secrets").await, ["password"]);
    assert_eq!(tokens(&second).await, own_tokens, "the tokens of another cluster");

    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
    let refused = mesh_backup(&second, &["restore", file]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the backup doesn't open"), "{said}");
}
