//! Tests of autolock: what is on a manager's disk, and what a restarted manager waits for.

use hyper::Method;
use mesh_state::fixtures::EtcdProcess;
use serde_json::{Value, json};

use crate::support::control_process::Manager;
use crate::support::eventually;

const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";

/// Turns autolock on or off, or rotates its key; returns the unlock key of then.
pub(super) async fn update(manager: &Manager, locks: bool, rotates: bool) -> String {
    let (_, mut swarm) = manager.docker().get("/swarm").await.unwrap();
    swarm["Spec"]["EncryptionConfig"]["AutoLockManagers"] = json!(locks);
    let version = &swarm["Version"]["Index"];
    let path = format!("/swarm/update?version={version}&rotateManagerUnlockKey={rotates}");
    let (status, answer) = manager.docker().call(Method::POST, &path, Some(&swarm["Spec"])).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let (_, key) = manager.docker().get("/swarm/unlockkey").await.unwrap();
    key["UnlockKey"].as_str().unwrap().to_owned()
}

pub(super) async fn unlock(manager: &Manager, key: &str) -> (u16, Value) {
    let body = json!({ "UnlockKey": key });
    manager.docker().call(Method::POST, "/v1.41/swarm/unlock", Some(&body)).await.unwrap()
}

/// Kills the manager, starts it again, and returns the state that `docker info` shows of it then.
pub(super) async fn restarted(manager: &mut Manager) -> String {
    manager.kill();
    manager.restart();
    eventually("an answer to /info", async || {
        let (_, info) = manager.docker().get("/v1.41/info").await.ok()?;
        info["Swarm"]["LocalNodeState"].as_str().map(str::to_owned)
    })
    .await
}

/// Whether the manager's disk has its key, or a token, in clear.
fn is_open(manager: &Manager) -> bool {
    let data = manager.data();
    assert!(!data.join("key.new").exists(), "a copy of the key was left");
    let key = std::fs::read(data.join("key")).unwrap();
    let tokens = ["join-token-worker", "join-token-manager"].map(|file| data.join(file).exists());
    assert_eq!(tokens, [key.len() == 32; 2], "tokens on the disk, with a key of {} bytes", key.len());
    key.len() == 32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_manager_with_autolock_waits_for_its_key() {
    let etcd = EtcdProcess::start().await.unwrap();
    let mut manager = Manager::start("m1", &etcd, None).await;
    assert!(is_open(&manager), "before autolock");
    let first = update(&manager, true, false).await;
    assert!(!is_open(&manager), "with autolock");
    assert_eq!(unlock(&manager, &first).await, (409, json!({"message": "swarm is not locked"})));

    assert_eq!(restarted(&mut manager).await, "locked");
    for path in ["/services", "/v1.41/nodes", "/swarm", "/swarm/unlockkey", "/networks"] {
        let refused = manager.docker().get(path).await.unwrap();
        assert_eq!(refused, (503, json!({ "message": LOCKED })), "GET {path}");
    }
    let (status, left) = manager.docker().call(Method::POST, "/swarm/leave", None).await.unwrap();
    assert!(status == 503 && left["message"].as_str().unwrap().starts_with("Swarm is encrypted and locked."));
    // Its etcd is its operator's: so it is for a manager that is not locked.
    let (status, _) = manager.docker().call(Method::POST, "/mesh/resign?force=1", None).await.unwrap();
    assert_eq!(status, 501);
    let other = format!("SWMKEY-1-{}", "A".repeat(43));
    let wrong = json!({"message": "swarm could not be unlocked: invalid key provided"});
    assert_eq!(unlock(&manager, &other).await, (401, wrong.clone()));
    assert_eq!(unlock(&manager, "x").await, (400, json!({"message": "invalid key string"})));
    assert_eq!(unlock(&manager, &first).await, (200, Value::Null));
    let (status, nodes) = manager.docker().get("/nodes").await.unwrap();
    assert_eq!((status, nodes), (200, json!([])), "it serves once the client is answered");

    let second = update(&manager, true, true).await;
    assert_ne!(first, second);
    assert_eq!(restarted(&mut manager).await, "locked");
    assert_eq!(unlock(&manager, &first).await, (401, wrong), "the former key");
    assert_eq!(unlock(&manager, &second).await.0, 200);
    assert!(!manager.log().contains(&second[9..]), "the key is in the log");

    assert_eq!(update(&manager, false, false).await, "");
    assert!(is_open(&manager), "without autolock");
    assert_eq!(restarted(&mut manager).await, "active");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_reaches_every_running_manager_and_those_that_come_back() {
    let etcd = EtcdProcess::start().await.unwrap();
    let first = Manager::start("m1", &etcd, None).await;
    let mut second = Manager::start("m2", &etcd, Some(&first)).await;
    let old = update(&first, true, false).await;
    eventually("a wrapped key at the other manager", async || (!is_open_key(&second)).then_some(())).await;
    // It is down while the key is rotated: its file is wrapped with the former one, as in Swarm.
    second.kill();
    let new = update(&first, true, true).await;
    second.restart();
    eventually("a locked manager", async || {
        let (_, info) = second.docker().get("/info").await.ok()?;
        (info["Swarm"]["LocalNodeState"] == "locked").then_some(())
    })
    .await;
    let wrapped = || std::fs::read(second.data().join("key")).unwrap();
    let before = wrapped();
    assert_eq!(unlock(&second, &new).await.0, 401);
    assert_eq!(unlock(&second, &old).await.0, 200);
    eventually("the key file under the new key", async || (wrapped() != before).then_some(())).await;
    assert_eq!(restarted(&mut second).await, "locked");
    assert_eq!(unlock(&second, &new).await.0, 200);
}

fn is_open_key(manager: &Manager) -> bool {
    std::fs::read(manager.data().join("key")).unwrap().len() == 32
}
