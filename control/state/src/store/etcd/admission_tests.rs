//! Tests that a real etcd serves only clients with a certificate of its CA.

use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{Client, Permission};
use mesh_etcd_pki::EtcdAuthority;

use super::{EtcdAccess, EtcdAccessError, EtcdIdentity, EtcdStore, EtcdUser};
use crate::fixtures::EtcdProcess;
use crate::store::{Compare, Op, Store as _, StoreError, TxnOutcome};

async fn put(store: &EtcdStore, key: &str) -> Result<TxnOutcome, StoreError> {
    store.txn(vec![Compare::Absent(key.to_owned())], vec![Op::put(key.to_owned(), vec![1])]).await
}

#[tokio::test]
async fn a_client_without_a_certificate_of_its_ca_is_refused() {
    let etcd = EtcdProcess::start().await.unwrap();
    let own = etcd.store().await.unwrap();
    put(&own, "/a").await.unwrap();

    let nothing = EtcdStore::open(EtcdAccess { identity: None, ..etcd.access() }).await.unwrap();
    assert_refused(&nothing, "a client without a certificate").await;

    let directory = tempfile::tempdir().unwrap();
    let (stranger, _) = EtcdAuthority::create(chrono::Utc::now()).unwrap();
    stranger.issue_client(1, chrono::Utc::now()).unwrap().write(directory.path(), "client").unwrap();
    let identity = EtcdIdentity {
        certificate: directory.path().join("client.pem"),
        key: directory.path().join("client.key"),
    };
    let foreign = EtcdAccess { identity: Some(identity), ..etcd.access() };
    assert_refused(&EtcdStore::open(foreign).await.unwrap(), "a client of another CA").await;

    let plain = EtcdAccess::plain(&[etcd.url().replace("https", "http")]);
    assert_refused(&EtcdStore::open(plain).await.unwrap(), "a client in plain text").await;

    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, stranger.certificate_pem()).unwrap();
    let deceived = EtcdAccess { ca: Some(ca), ..etcd.access() };
    assert_refused(&EtcdStore::open(deceived).await.unwrap(), "a client that trusts another CA").await;
    assert_eq!(own.list("/").await.unwrap().items.len(), 1, "the number of keys afterwards");
}

async fn assert_refused(store: &EtcdStore, who: &str) {
    for outcome in [store.get("/a").await.map(|_| ()), put(store, "/b").await.map(|_| ())] {
        assert!(
            matches!(outcome, Err(StoreError::Unavailable { .. } | StoreError::Deadline { .. })),
            "{who} was served: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn new_certificates_are_read_from_disk_without_a_restart() {
    let etcd = EtcdProcess::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (stranger, _) = EtcdAuthority::create(chrono::Utc::now()).unwrap();
    stranger.issue_client(1, chrono::Utc::now()).unwrap().write(directory.path(), "client").unwrap();
    let file = |name: &str| directory.path().join(name);
    let identity = EtcdIdentity { certificate: file("client.pem"), key: file("client.key") };
    let access = EtcdAccess { identity: Some(identity), ..etcd.access() };
    let store = EtcdStore::open(access).await.unwrap();
    assert_refused(&store, "a client of another CA").await;

    for name in ["client.pem", "client.key"] {
        std::fs::copy(etcd.tls_file(name), file(name)).unwrap();
    }
    // The attempt with the old certificates fails, and the next one reads the new ones.
    let served = async {
        while store.get("/a").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), served).await.expect("the new certificate was never used");
}

#[tokio::test]
async fn files_are_read_again_on_demand_and_unusable_ones_change_nothing() {
    let etcd = EtcdProcess::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let names = ["client.pem", "client.key"];
    let restore = || names.map(|name| std::fs::copy(etcd.tls_file(name), file(name)).unwrap());
    restore();
    let identity = EtcdIdentity { certificate: file("client.pem"), key: file("client.key") };
    let store = EtcdStore::open(EtcdAccess { identity: Some(identity), ..etcd.access() }).await.unwrap();
    put(&store, "/a").await.unwrap();

    std::fs::write(file("client.key"), "not a key").unwrap();
    let refused = store.reconnect().await.unwrap_err();
    assert!(matches!(refused, EtcdAccessError::Client { .. }), "an invalid key: {refused:?}");
    assert!(store.get("/a").await.unwrap().is_some(), "the connection of before is gone");

    // A stranger's certificate shows that the files were read.
    let (stranger, _) = EtcdAuthority::create(chrono::Utc::now()).unwrap();
    stranger.issue_client(1, chrono::Utc::now()).unwrap().write(directory.path(), "client").unwrap();
    store.reconnect().await.unwrap();
    assert_refused(&store, "a client of another CA").await;
    restore();
    store.reconnect().await.unwrap();
    assert!(store.get("/a").await.unwrap().is_some(), "the new certificate isn't used");
}

#[tokio::test]
async fn a_user_is_served_with_its_password_alone() {
    let etcd = EtcdProcess::start().await.unwrap();
    let options = etcd.access().options(&etcd.url()).await.unwrap();
    let mut admin = Client::connect([etcd.url()], Some(options)).await.unwrap();
    admin.user_add("root", "r", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.user_add("mesh", "s3cret", None).await.unwrap();
    admin.role_add("mesh").await.unwrap();
    let all_of_mesh = Permission::read_write("/mesh/").with_prefix();
    admin.role_grant_permission("mesh", all_of_mesh).await.unwrap();
    admin.user_grant_role("mesh", "mesh").await.unwrap();
    admin.auth_enable().await.unwrap();

    let directory = tempfile::tempdir().unwrap();
    let password_file = directory.path().join("password");
    let user = EtcdUser { name: "mesh".to_owned(), password_file: password_file.clone() };
    let access = EtcdAccess { user: Some(user), ..etcd.access() };
    std::fs::write(&password_file, "s3cret\n").unwrap();
    let store = EtcdStore::open(access.clone()).await.unwrap();
    put(&store, "/mesh/a").await.unwrap();
    let beyond = put(&store, "/other").await;
    assert!(matches!(beyond, Err(StoreError::Refused { .. })), "outside of its role: {beyond:?}");

    std::fs::write(&password_file, "wrong").unwrap();
    let refused = EtcdStore::open(access).await.unwrap().get("/mesh/a").await;
    assert!(matches!(refused, Err(StoreError::Refused { .. })), "with a wrong password: {refused:?}");
}

#[tokio::test]
async fn invalid_files_are_refused_at_once() {
    let missing = EtcdAccess {
        addresses: vec!["https://127.0.0.1:1".to_owned()],
        ca: Some(PathBuf::from("/nowhere/ca.pem")),
        ..EtcdAccess::default()
    };
    let refused = EtcdStore::open(missing.clone()).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("/nowhere/ca.pem"), "the error doesn't name the file: {refused}");
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    std::fs::write(file("ca.pem"), "not a certificate").unwrap();
    let no_ca = EtcdAccess { ca: Some(file("ca.pem")), ..missing };
    let refused = EtcdStore::open(no_ca.clone()).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, EtcdAccessError::File { .. }), "an invalid CA: {refused:?}");

    let (authority, ca) = EtcdAuthority::create(chrono::Utc::now()).unwrap();
    std::fs::write(file("ca.pem"), ca.certificate_pem).unwrap();
    authority.issue_client(1, chrono::Utc::now()).unwrap().write(directory.path(), "client").unwrap();
    std::fs::write(file("client.key"), "not a key").unwrap();
    let identity = EtcdIdentity { certificate: file("client.pem"), key: file("client.key") };
    let no_key = EtcdAccess { identity: Some(identity), ..no_ca };
    let refused = EtcdStore::open(no_key).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, EtcdAccessError::Client { .. }), "an invalid key: {refused:?}");
}
