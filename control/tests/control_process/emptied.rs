//! Tests that an etcd that was emptied, or that is another cluster's, is an outage.

use mesh_state::fixtures::EtcdProcess;
use mesh_state::keys;
use mesh_state::store::{Op, Store as _};

use crate::support::control_process::{Manager, ca_pem};
use crate::support::eventually;
use crate::support::node::{Session, join};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_etcd_is_an_outage_and_no_new_cluster() {
    let etcd = EtcdProcess::start().await.unwrap();
    let mut manager = Manager::start("m1", &etcd, None).await;
    let member = join(manager.nodes, &manager.join_token(), &ca_pem(&etcd).await, "node-1").await.unwrap();
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    let store = etcd.store().await.unwrap();
    let record = store.get(keys::CLUSTER).await.unwrap().unwrap().value;
    let everything = store.list(keys::ROOT).await.unwrap().items;
    for item in everything {
        store.txn(vec![], vec![Op::Delete { key: item.key }]).await.unwrap();
    }
    eventually("a refusal", async || {
        let (_, info) = manager.docker().get("/v1.41/info").await.ok()?;
        let said = info["Swarm"]["Error"].as_str().unwrap_or_default();
        said.contains("The swarm does not have a leader").then_some(())
    })
    .await;
    // A member is still a member: its session goes on, and a new one is refused for the moment, not
    // for good.
    let alive =
        tokio::time::timeout(std::time::Duration::from_secs(3), session.until("an end", |_| None::<()>));
    assert!(alive.await.is_err(), "the session ended");
    let refused = Session::open(manager.nodes, &member, 0).await.map(|_| ());
    assert!(
        refused.as_ref().err().is_none_or(|status| status.code() == tonic::Code::Unavailable),
        "a member was refused for good: {refused:?}"
    );

    manager.kill();
    manager.restart();
    let waits = eventually("a manager that waits", async || {
        let (status, answer) = manager.docker().get("/v1.41/services").await.ok()?;
        (status == 503).then(|| answer["message"].as_str().unwrap_or_default().to_owned())
    })
    .await;
    eventually("the reason", async || {
        let (_, answer) = manager.docker().get("/v1.41/services").await.ok()?;
        answer["message"].as_str().filter(|text| text.contains("--new-cluster")).map(str::to_owned)
    })
    .await;
    assert!(!waits.is_empty(), "the log has no reason");
    assert!(store.get(keys::CLUSTER).await.unwrap().is_none(), "a new cluster was made over an existing key");

    store.txn(vec![], vec![Op::put(keys::CLUSTER, record)]).await.unwrap();
    eventually("the cluster again", async || manager.admin("readyz").await.filter(|text| text == "ok\n"))
        .await;
}
