//! Certificates are renewed in time, and shortly after it.

use std::sync::Arc;

use mesh_agent::control_link::identity::Identity;
use mesh_agent::control_link::renewal::Renewal;
use mesh_agent::control_link::trusted_cas::ToldCas;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::manager::{SOON, make_ca, serve};

const DAY: i64 = 24 * 3600;

/// The identity that `identity` gets from a real manager, the second of two addresses, and the one
/// on disk then.
async fn renewed(since: i64, until: i64) -> (Identity, Identity) {
    let ca = Arc::new(make_ca());
    let manager = serve(&ca).await;
    let dead = "127.0.0.1:1".parse().expect("an address");
    let directory = tempfile::tempdir().expect("a directory");
    let old = ca.member(since, until);
    let (sender, mut identity) = watch::channel(old.clone());
    let shutdown = CancellationToken::new();
    let renewal = Renewal {
        managers: vec![dead, manager.address].into(),
        data_dir: directory.path().to_owned(),
        identity: sender,
        told: watch::channel(None).1,
    };
    let running = tokio::spawn(renewal.run(shutdown.clone()));
    let changed = timeout(SOON, identity.changed()).await;
    changed.expect("the certificate was never renewed").expect("renewal goes on");
    let new = identity.borrow_and_update().clone();
    let stored = Identity::load(directory.path()).expect("it is read").expect("it is stored");
    assert_eq!(stored, new, "what is on disk is what is used");
    assert_ne!(new.certificate_pem, old.certificate_pem, "the certificate is the old one");
    assert!(!identity.has_changed().expect("renewal goes on"), "a fresh certificate was renewed, too");
    shutdown.cancel();
    running.await.expect("it ends").expect("without an error");
    (old, new)
}

#[tokio::test]
async fn a_certificate_is_renewed_late_in_its_life_with_a_new_key() {
    let (old, new) = renewed(-89 * DAY, DAY).await;
    assert_ne!(new.key_pem, old.key_pem, "the key is the old one");
}

#[tokio::test]
async fn an_expired_certificate_is_renewed_by_its_key() {
    let (old, new) = renewed(-90 * DAY, -DAY).await;
    assert_eq!(new.key_pem, old.key_pem, "its key proves who asks");
}

#[tokio::test]
async fn a_young_certificate_is_left_alone() {
    let ca = Arc::new(make_ca());
    let manager = serve(&ca).await;
    let directory = tempfile::tempdir().expect("a directory");
    let (sender, mut identity) = watch::channel(ca.member(-DAY, 89 * DAY));
    let shutdown = CancellationToken::new();
    let renewal = Renewal {
        managers: vec![manager.address].into(),
        data_dir: directory.path().to_owned(),
        identity: sender,
        told: watch::channel(None).1,
    };
    let running = tokio::spawn(renewal.run(shutdown.clone()));
    let wait = timeout(std::time::Duration::from_millis(300), identity.changed()).await;
    assert!(wait.is_err(), "a young certificate was renewed");
    shutdown.cancel();
    running.await.expect("it ends").expect("without an error");
}

#[tokio::test]
async fn what_managers_tell_of_their_cas_is_trusted_and_renewed_for() {
    let (ca, other) = (Arc::new(make_ca()), make_ca());
    let manager = serve(&ca).await;
    let directory = tempfile::tempdir().expect("a directory");
    let old = ca.member(-DAY, 89 * DAY);
    let (sender, mut identity) = watch::channel(old.clone());
    let (tell, told) = watch::channel(None);
    let shutdown = CancellationToken::new();
    let renewal = Renewal {
        managers: vec![manager.address].into(),
        data_dir: directory.path().to_owned(),
        identity: sender,
        told,
    };
    let running = tokio::spawn(renewal.run(shutdown.clone()));
    let both = format!("{}{}", ca.pem, other.pem);
    tell.send_replace(Some(ToldCas { ca_pem: both.clone(), renew: false }));
    timeout(SOON, identity.changed()).await.expect("they are trusted").expect("renewal goes on");
    let trusting = identity.borrow_and_update().clone();
    assert_eq!(trusting, Identity { ca_pem: both.clone(), ..old.clone() });
    assert_eq!(Identity::load(directory.path()).expect("it is read"), Some(trusting));

    // The other CA alone would shut this node out: its certificate is not of that one.
    tell.send_replace(Some(ToldCas { ca_pem: other.pem.clone(), renew: false }));
    let wait = timeout(std::time::Duration::from_millis(300), identity.changed()).await;
    assert!(wait.is_err(), "a CA was taken that did not sign this node's certificate");

    tell.send_replace(Some(ToldCas { ca_pem: both.clone(), renew: true }));
    timeout(SOON, identity.changed()).await.expect("it is renewed").expect("renewal goes on");
    let new = identity.borrow().clone();
    assert!(new.certificate_pem != old.certificate_pem && new.ca_pem == both, "told to renew");
    shutdown.cancel();
    running.await.expect("it ends").expect("without an error");
}
