//! Clusters made, found, missed and mistaken, on the store in memory.

use std::os::unix::fs::PermissionsExt as _;

use mesh_state::node::NodeRole;
use mesh_state::store::MemoryStore;

use super::*;

async fn open(store: &MemoryStore, directory: &Path) -> Result<OpenedCluster, BootstrapError> {
    open_cluster(
        store,
        directory,
        WantedPool::default(),
        Timestamp::from_timestamp(1_800_000_000, 0).unwrap(),
    )
    .await
}

#[tokio::test]
async fn an_emptied_store_is_no_new_cluster() {
    let (store, directory) = (MemoryStore::new(), tempfile::tempdir().unwrap());
    let made = open(&store, directory.path()).await.unwrap();
    let key = std::fs::read(directory.path().join("key")).unwrap();
    let emptied = MemoryStore::new();
    let waits = open(&emptied, directory.path()).await.map(|_| ()).unwrap_err();
    assert!(matches!(waits, BootstrapError::Missing { .. }) && waits.is_transient(), "{waits:?}");
    assert!(emptied.get(keys::CLUSTER).await.unwrap().is_none(), "a cluster was made over an existing key");

    let other = tempfile::tempdir().unwrap();
    open(&emptied, other.path()).await.unwrap();
    let waits = open(&emptied, directory.path()).await.map(|_| ()).unwrap_err();
    assert!(matches!(waits, BootstrapError::OtherCluster { .. }) && waits.is_transient(), "{waits:?}");
    assert_eq!(open(&store, directory.path()).await.unwrap().cluster, made.cluster, "its own is back");

    let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
    let wanted = BootstrapOptions { new_cluster: true, ..WantedPool::default().into() };
    let asked = open_cluster(&MemoryStore::new(), directory.path(), wanted, now).await.unwrap();
    assert_ne!(asked.cluster.id, made.cluster.id, "a new cluster, when it is asked for");
    assert_eq!(std::fs::read(directory.path().join("key")).unwrap(), key, "the key stays");
}

#[tokio::test]
async fn a_manager_that_never_heard_of_its_cluster_opens_it() {
    let (store, directory) = (MemoryStore::new(), tempfile::tempdir().unwrap());
    let made = open(&store, directory.path()).await.unwrap();
    // As it was when etcd took the record and its answer was lost.
    std::fs::rename(directory.path().join("key"), directory.path().join("key.new")).unwrap();
    std::fs::remove_file(directory.path().join("cluster-id")).unwrap();
    assert_eq!(open(&store, directory.path()).await.unwrap().cluster, made.cluster);
    assert!(directory.path().join("key").exists(), "the key is in its place");
    let again = open(&store, directory.path()).await.unwrap();
    assert_eq!(again.cluster, made.cluster);
}

#[tokio::test]
async fn the_first_manager_makes_the_cluster_and_finds_it_again() {
    let (store, directory) = (MemoryStore::new(), tempfile::tempdir().unwrap());
    let data = directory.path().join("control");
    let made = open(&store, &data).await.unwrap();
    let found = open(&store, &data).await.unwrap();
    assert_eq!(found.cluster, made.cluster, "the cluster found again");
    assert_eq!(found.trust.said(), made.trust.said());

    let tokens = join_tokens(&found.cluster, &found.sealer).unwrap();
    for (file, role) in [("join-token-worker", NodeRole::Worker), ("join-token-manager", NodeRole::Manager)] {
        let path = data.join(file);
        let token = std::fs::read_to_string(&path).unwrap();
        assert_eq!(tokens.role_of(&token), Some(role), "{file} holds {token}");
        let permissions = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(permissions, 0o600, "mode of {file}");
    }
    let relay_key = found.sealer.open(RELAY_KEY, &found.cluster.relay_key).unwrap();
    assert_eq!(relay_key.len(), RELAY_KEY_BYTES);
}

#[tokio::test]
async fn another_manager_needs_the_key_file() {
    let store = MemoryStore::new();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = open(&store, first.path()).await.unwrap();
    let refused = open(&store, second.path()).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("copy the key file"), "the error doesn't say what to do: {refused}");
    assert!(!second.path().join("key").exists(), "a key was made for a cluster that exists");

    std::fs::write(second.path().join("key"), [9; 32]).unwrap();
    let wrong = open(&store, second.path()).await.map(|_| ()).unwrap_err();
    assert!(
        matches!(wrong, BootstrapError::Trust(TrustError::Seal(SealError::Open { .. }))),
        "a wrong key: {wrong:?}"
    );

    std::fs::copy(first.path().join("key"), second.path().join("key")).unwrap();
    assert_eq!(open(&store, second.path()).await.unwrap().cluster, made.cluster);
}

#[tokio::test]
async fn a_store_that_is_away_is_worth_another_attempt() {
    let (store, directory) = (MemoryStore::new(), tempfile::tempdir().unwrap());
    store.set_reachable(false);
    let error = open(&store, directory.path()).await.map(|_| ()).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(!directory.path().join("key").exists(), "a key was made before the store was asked");
}
