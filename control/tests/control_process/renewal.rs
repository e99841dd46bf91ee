//! Tests that members renew their certificates, also when these have just expired, and that no one
//! else gets one.

use chrono::Utc;
use mesh_control::ca::{Authority, MEMBER_LIFE};
use mesh_control::context::CA_KEY;
use mesh_control::seal::Sealer;
use mesh_state::cluster::Cluster;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::node::NodeRole;
use mesh_state::proto::RenewExpiredRequest;
use mesh_state::proto::membership_client::MembershipClient;
use mesh_state::store::{Op, Store as _};
use mesh_state::{codec, keys};
use rcgen::{CertificateParams, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig};
use tonic::{Code, Status};

use crate::support::control_process::{Manager, ca_pem};
use crate::support::node::{Member, Session, connect, join};

fn request(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

/// Renews without mutual TLS, with a request that is signed with `key`.
async fn renew_expired(manager: &Manager, member: &Member, key: &KeyPair) -> Result<Member, Status> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&member.ca_pem));
    let mut client = MembershipClient::new(connect(manager.nodes, tls).await?);
    let sent = RenewExpiredRequest { certificate_pem: member.certificate_pem.clone(), csr_pem: request(key) };
    let certificate_pem = client.renew_expired(sent).await?.into_inner().certificate_pem;
    Ok(Member { certificate_pem, ..member.clone() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_renews_its_certificate_and_an_expired_one_for_a_while() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let member = join(manager.nodes, &manager.join_token(), &ca_pem(&etcd).await, "node-1").await.unwrap();
    let renewed = member.renew(manager.nodes).await.unwrap();
    assert_ne!(renewed.certificate_pem, member.certificate_pem);
    drop(Session::open(manager.nodes, &renewed, 0).await.unwrap());

    // The same member, as if it had been away: its certificate expired a day, or two weeks, ago.
    let store = etcd.store().await.unwrap();
    let item = store.get(keys::CLUSTER).await.unwrap().unwrap();
    let cluster: Cluster = codec::decode(&item.value).unwrap();
    let sealer = Sealer::load(&manager.data().join("key"), None).unwrap().unwrap();
    let ca_key = sealer.open(CA_KEY, &cluster.ca_key).unwrap();
    let authority =
        Authority::load(&cluster.ca_certificate_pem, std::str::from_utf8(&ca_key).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let expired = |days: i64| {
        let issued = Utc::now() - MEMBER_LIFE - chrono::Duration::days(days);
        let id = member.id.as_str().into();
        let signed = authority.sign_member(&request(&key), &id, NodeRole::Worker, MEMBER_LIFE, issued);
        Member { key_pem: key.serialize_pem(), certificate_pem: signed.unwrap(), ..member.clone() }
    };
    let late = expired(1);
    assert!(Session::open(manager.nodes, &late, 0).await.is_err(), "an expired certificate opened a session");
    let back = renew_expired(&manager, &late, &key).await.unwrap();
    drop(Session::open(manager.nodes, &back, 0).await.unwrap());

    let stranger = KeyPair::generate().unwrap();
    for (member, key, why) in
        [(&late, &stranger, "by a caller without its key"), (&expired(14), &key, "after two weeks")]
    {
        let refused = renew_expired(&manager, member, key).await.map(|_| ()).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "renewed {why}: {refused}");
    }

    let node = keys::node(&member.id.as_str().into());
    store.txn(vec![], vec![Op::Delete { key: node }]).await.unwrap();
    let refused = renew_expired(&manager, &late, &key).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "a removed node got a certificate: {refused}");
    let metrics = manager.admin("metrics").await.unwrap();
    for certificate in ["server", "ca", "etcd"] {
        let name = format!("mesh_certificate_seconds_left{{certificate=\"{certificate}\"}} ");
        assert!(metrics.contains(&name), "no {name} in {metrics}");
    }
}
