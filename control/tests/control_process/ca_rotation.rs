//! A rotation of the CA, with two real managers and nodes played by the test.

use hyper::Method;
use mesh_control::ca::token::certificate_digest;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::proto::TrustedCas;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::support::control_process::{Manager, ca_pem};
use crate::support::eventually;
use crate::support::node::{Member, Session, join};

async fn swarm(manager: &Manager) -> Value {
    manager.docker().get("/swarm").await.unwrap().1
}

async fn update(manager: &Manager, config: &Value) {
    let mut swarm = swarm(manager).await;
    swarm["Spec"]["CAConfig"].as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    let (status, answer) = manager.docker().call(Method::POST, &path, Some(&swarm["Spec"])).await.unwrap();
    assert_eq!(status, 200, "{answer}");
}

/// What the CLI counts in its progress bars: nodes with the issuer, and with the root, that the
/// cluster shows; and whether the rotation goes on.
async fn progress(manager: &Manager) -> (usize, usize, bool) {
    let swarm = swarm(manager).await;
    let (_, nodes) = manager.docker().get("/nodes").await.unwrap();
    let equal = |field: &str| {
        let nodes = nodes.as_array().unwrap().iter();
        nodes.filter(|node| node["Description"]["TLSInfo"][field] == swarm["TLSInfo"][field]).count()
    };
    (equal("CertIssuerPublicKey"), equal("TrustRoot"), swarm["RootRotationInProgress"] == json!(true))
}

/// A session of a member. Like an agent, it tries again if the manager just changes its server.
async fn session(manager: &Manager, member: &Member) -> Session {
    eventually("a session", async || Session::open(manager.nodes, member, 0).await.ok()).await
}

/// Does what an agent does until the rotation is over: renews when it is told to, and trusts what
/// it is told.
async fn follow(manager: &Manager, mut member: Member) -> (Member, Session) {
    let mut open = session(manager, &member).await;
    loop {
        let (trusted, before) = (member.ca_pem.clone(), member.trusts().len());
        let is_news = |told: &TrustedCas| told.renew || told.ca_pem != trusted;
        let told = open.until("CAs to trust", |seen| seen.cas.clone().filter(is_news)).await.unwrap();
        member = if told.renew {
            eventually("a renewal", async || member.renew(manager.nodes).await.ok()).await
        } else {
            Member { ca_pem: told.ca_pem, ..member }
        };
        open = session(manager, &member).await;
        if before > 1 && member.trusts().len() == 1 {
            return (member, open);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ca_is_rotated_while_nodes_and_managers_stay_connected() {
    let etcd = EtcdProcess::start().await.unwrap();
    let first = Manager::start("m1", &etcd, None).await;
    let second = Manager::start("m2", &etcd, Some(&first)).await;
    let (token, old_ca) = (first.join_token(), ca_pem(&etcd).await);
    let one = join(first.nodes, &token, &old_ca, "node-1").await.unwrap();
    let two = join(second.nodes, &token, &old_ca, "node-2").await.unwrap();
    let away = Session::open(second.nodes, &two, 0).await.unwrap();
    away.fall_silent();
    assert_eq!(progress(&first).await, (2, 2, false));

    update(&first, &json!({"ForceRotate": 1})).await;
    let meanwhile = async {
        // One node has renewed; the other one still has its former certificate.
        eventually("one node with a new certificate", async || {
            (progress(&second).await.0 == 1).then_some(())
        })
        .await;
        assert!(progress(&second).await.2, "the rotation waits for node-2");
        let newcomer = join(second.nodes, &second.join_token(), &old_ca, "node-3").await.unwrap();
        assert_eq!(newcomer.trusts().len(), 2, "whoever joins trusts both");
        drop(session(&second, &newcomer).await);
        drop(away);
        follow(&second, two).await
    };
    let ((one, mut open), (two, _two)) = tokio::join!(follow(&first, one), meanwhile);
    eventually("the end of the rotation", async || (!progress(&first).await.2).then_some(())).await;
    let new_ca = ca_pem(&etcd).await;
    assert!(new_ca != old_ca && one.ca_pem == new_ca && two.ca_pem == new_ca);
    let digest = certificate_digest(&CertificateDer::from_pem_slice(new_ca.as_bytes()).unwrap());
    let worker = swarm(&first).await["JoinTokens"]["Worker"].as_str().unwrap().to_owned();
    assert_eq!(worker.split('-').nth(2), Some(digest.as_str()), "tokens name the new CA");
    open.until("its managers", |seen| (!seen.managers.is_empty()).then_some(())).await.unwrap();

    // Nobody goes by the former CA any more.
    for manager in [&first, &second] {
        eventually("a server with the new CA alone", async || {
            let refused = join(manager.nodes, &worker, &old_ca, "late").await.is_err();
            refused.then_some(())
        })
        .await;
        drop(session(manager, &one).await);
        assert!(join(manager.nodes, &token, &new_ca, "late").await.is_err(), "the former token was taken");
    }
}
