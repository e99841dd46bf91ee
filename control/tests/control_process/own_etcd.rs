//! A manager with an etcd of its own: where that one's private keys are, and how it leaves while it
//! is locked.

use std::path::Path;

use hyper::Method;
use mesh_control::managed_etcd::authority;
use mesh_control::seal::Sealer;
use mesh_runtime::private_file;
use serde_json::{Value, json};

use crate::autolock::{restarted, unlock, update};
use crate::support::control_process::Manager;
use crate::support::eventually;

/// Founds a cluster on a manager that waits for one; returns the answer.
async fn found(manager: &Manager) -> (u16, Value) {
    let founding = json!({ "advertise": manager.nodes, "listen": manager.nodes });
    eventually("an answer to init", async || {
        manager.docker().call(Method::POST, "/mesh/init", Some(&founding)).await.ok()
    })
    .await
}

/// The files below `directory` that hold a private key in clear; etcd's own data aside.
fn clear_keys(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.ends_with("etcd/data") || path.ends_with("control.sock") {
                Vec::new()
            } else if path.is_dir() {
                clear_keys(&path)
            } else {
                // A file that is about to replace another one may be gone.
                let bytes = private_file::read(&path).unwrap().unwrap_or_default();
                let shows = bytes.windows(11).any(|part| part == b"PRIVATE KEY");
                shows.then(|| path.display().to_string()).into_iter().collect()
            }
        })
        .collect()
}

async fn cluster(manager: &Manager) -> String {
    eventually("the cluster", async || {
        let (status, swarm) = manager.docker().get("/swarm").await.ok()?;
        (status == 200).then(|| swarm["ID"].as_str().unwrap().to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_keys_are_on_no_disk_and_a_locked_manager_leaves_by_force() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let run_dir = memory.path().join("etcd");
    let mut manager = Manager::with_own_etcd("m1", Some(&run_dir));
    let data = manager.data();
    let pki = data.join("etcd/pki");
    assert_eq!(found(&manager).await.0, 200, "{}", manager.log());
    let id = cluster(&manager).await;
    assert_eq!(clear_keys(&data), [""; 0], "a private key is on the disk");
    assert_eq!(clear_keys(&run_dir).len(), 2, "etcd's keys and its client's are in memory");

    // As an older version stored it.
    manager.kill();
    let sealer = Sealer::load(&data.join("key"), None).unwrap().unwrap();
    authority::read(&pki, &sealer).unwrap().unwrap().write(&pki, "ca").unwrap();
    std::fs::remove_file(pki.join("ca.key.sealed")).unwrap();
    assert_eq!(clear_keys(&data).len(), 1);
    manager.restart();
    assert_eq!(cluster(&manager).await, id, "the cluster after the upgrade");
    assert_eq!(clear_keys(&data), [""; 0], "a private key is left by the upgrade");

    let key = update(&manager, true, false).await;
    assert_eq!(restarted(&mut manager).await, "locked");
    assert!(!run_dir.exists(), "keys of a locked manager's etcd: {:?}", clear_keys(&run_dir));
    assert_eq!(unlock(&manager, &key).await.0, 200);
    assert_eq!(cluster(&manager).await, id, "the cluster after docker swarm unlock");

    assert_eq!(restarted(&mut manager).await, "locked");
    let leave = async |path| manager.docker().call(Method::POST, path, None).await.unwrap();
    for path in ["/swarm/leave", "/mesh/resign", "/swarm/leave?force=0"] {
        let (status, said) = leave(path).await;
        assert!(
            status == 503 && said["message"].as_str().unwrap().contains("use `--force` to ignore"),
            "{path}: {status} {said}"
        );
    }
    assert_eq!(leave("/mesh/resign?force=1").await.0, 202);
    let message = eventually("a manager that waits for a cluster", async || {
        let (_, said) = manager.docker().get("/swarm").await.ok()?;
        said["message"].as_str().filter(|text| text.contains("no cluster yet")).map(str::to_owned)
    })
    .await;
    assert!(message.contains("docker swarm init"), "{message}");
    for left in ["key", "cluster-id", "manager.json", "etcd"] {
        assert!(!data.join(left).exists(), "{left} of the cluster is left");
    }
    assert_eq!(found(&manager).await.0, 200, "{}", manager.log());
    assert_ne!(cluster(&manager).await, id, "a cluster of its own, without a lock");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_keys_are_not_written_to_a_disk() {
    // The directory beside the socket.
    let manager = Manager::with_own_etcd("m1", None);
    let (status, refused) = found(&manager).await;
    let message = refused["message"].as_str().unwrap();
    assert!(status == 500 && message.contains("--etcd-run-dir"), "{status} {message}");
    assert_eq!(clear_keys(manager.directory.path()), [""; 0]);
    assert!(!manager.data().join("key.new").exists(), "a cluster that can't be made leaves its key");
}
