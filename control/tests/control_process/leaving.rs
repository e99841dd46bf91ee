//! A node that leaves: the cluster takes note at once, of that node only. And one that wants to be
//! a manager: its role decides.

use mesh_state::fixtures::EtcdProcess;
use mesh_state::proto::node_service_client::NodeServiceClient;
use mesh_state::proto::{BecomeManagerRequest, LeaveRequest};
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::support::control_process::{Manager, ca_pem};
use crate::support::eventually;
use crate::support::node::{Session, connect, join};

/// The state and message of each node that `docker node ls` shows, by id.
async fn states(manager: &Manager) -> Vec<(String, String)> {
    let (_, nodes) = manager.docker().get("/nodes").await.unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = nodes.as_array().unwrap();
    nodes.iter().map(|node| (text(&node["ID"]), text(&node["Status"]["State"]))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_for_itself_and_is_down_at_once() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
    let leaver = join(manager.nodes, &token, &ca, "node-1").await.unwrap();
    let other = join(manager.nodes, &token, &ca, "node-2").await.unwrap();
    let leaving = Session::open(manager.nodes, &leaver, 0).await.unwrap();
    let mut staying = Session::open(manager.nodes, &other, 0).await.unwrap();
    eventually("two ready nodes", async || {
        let states = states(&manager).await;
        (states.iter().filter(|(_, state)| state == "ready").count() == 2).then_some(())
    })
    .await;
    staying.until("the managers", |seen| (!seen.managers.is_empty()).then_some(())).await.unwrap();
    assert_eq!(staying.managers, [manager.nodes.to_string()], "what nodes are told of managers");

    let trusting = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca));
    let stranger = connect(manager.nodes, trusting()).await.unwrap();
    let refused = NodeServiceClient::new(stranger).leave(LeaveRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");

    drop(leaving);
    let own = trusting().identity(Identity::from_pem(&leaver.certificate_pem, &leaver.key_pem));
    let member = connect(manager.nodes, own).await.unwrap();
    NodeServiceClient::new(member).leave(LeaveRequest {}).await.unwrap();
    eventually("the node to be down and no other", async || {
        let states = states(&manager).await;
        let of = |id: &str| states.iter().find(|(seen, _)| seen == id).map(|(_, state)| state.as_str());
        (of(&leaver.id) == Some("down") && of(&other.id) == Some("ready")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_gets_nothing_of_what_managers_have() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
    let worker = join(manager.nodes, &token, &ca, "node-1").await.unwrap();
    let request = BecomeManagerRequest {
        public_key: vec![9; 32],
        advertise: "10.0.0.2:2377".to_owned(),
        name: "m2".to_owned(),
    };
    let trusting = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca));
    let own = trusting().identity(Identity::from_pem(&worker.certificate_pem, &worker.key_pem));
    for (tls, expected) in [(trusting(), Code::Unauthenticated), (own, Code::PermissionDenied)] {
        let channel = connect(manager.nodes, tls).await.unwrap();
        let refused = NodeServiceClient::new(channel).become_manager(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), expected, "{refused}");
    }
}
