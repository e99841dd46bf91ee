//! Tests of requests that race, over both stores: of those that exclude each other, one succeeds.

use std::sync::Arc;

use mesh_state::fixtures::EtcdProcess;
use serde_json::json;

use crate::cluster::{Cluster, published, spec};
use crate::http_dependencies::a_reference_and_a_removal_exclude_each_other;

#[tokio::test(flavor = "multi_thread")]
async fn one_wins_over_the_store_in_memory() {
    one_wins(&Cluster::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wins_over_etcd_and_an_outage_is_reported() {
    let mut etcd = EtcdProcess::start().await.unwrap();
    let cluster = Cluster::on(Arc::new(etcd.store().await.unwrap())).await;
    one_wins(&cluster).await;

    etcd.stop();
    let write = cluster.post("/services/create", &spec("early", 1)).await;
    assert_eq!(write.status, 503, "a write without etcd: {}", write.body);
    cluster.until_connected(false).await;
    let write = cluster.post("/services/create", &spec("early", 1)).await;
    assert_eq!(write.status, 503, "a write while the watch is down: {}", write.body);
    assert_eq!(cluster.get("/services").await.status, 200, "what the manager saw last");
    etcd.resume().await.unwrap();
    cluster.until_connected(true).await;
    assert_eq!(cluster.service("updated").await["Spec"]["Name"], "updated");
    cluster.create(&spec("late", 1)).await;
}

async fn one_wins(cluster: &Cluster) {
    of_many_creations_one_wins_each_name_and_each_port(cluster).await;
    an_update_stands_on_the_version_that_was_read(cluster).await;
    a_reference_and_a_removal_exclude_each_other(cluster).await;
}

async fn of_many_creations_one_wins_each_name_and_each_port(cluster: &Cluster) {
    let same_name = futures::future::join_all(
        (0..12).map(|_| async { cluster.post("/services/create", &spec("web", 1)).await.status.as_u16() }),
    )
    .await;
    let won = same_name.iter().filter(|status| **status == 201).count();
    assert_eq!(won, 1, "expected one winner, saw {same_name:?}");
    assert!(same_name.iter().all(|status| matches!(status, 201 | 409)), "saw {same_name:?}");

    let any_port = futures::future::join_all((0..6).map(|number| async move {
        cluster.post("/services/create", &published(&format!("p{number}"), 0)).await.status
    }))
    .await;
    assert!(any_port.iter().all(|status| *status == 201), "saw {any_port:?}");
    let services = cluster.get("/services").await.body;
    let mut ports: Vec<_> = services
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|service| service["Endpoint"]["Ports"][0]["PublishedPort"].as_u64())
        .collect();
    ports.sort_unstable();
    assert_eq!(ports, (30_000..30_006).collect::<Vec<_>>());
}

async fn an_update_stands_on_the_version_that_was_read(cluster: &Cluster) {
    let id = cluster.create(&spec("updated", 1)).await;
    let before = cluster.service(&id).await;
    let version = before["Version"]["Index"].as_i64().unwrap();
    let path = format!("/v1.43/services/{id}/update?version={version}");
    let answers = futures::future::join_all((0..8).map(|replicas| {
        let path = &path;
        async move { cluster.post(path, &spec("updated", replicas)).await }
    }))
    .await;
    let won: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert_eq!(won.len(), 1, "expected one winner, saw {answers:?}");
    assert_eq!(won[0].body, json!({"Warnings": null}));
    for lost in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!(lost.refusal(), (500, "rpc error: code = Unknown desc = update out of sequence"));
    }
    let after = cluster.service(&id).await;
    assert_eq!(after["PreviousSpec"], before["Spec"]);
    assert!(after["Version"]["Index"].as_i64().unwrap() > version);
    let unread = cluster.post(&format!("/services/{id}/update"), &spec("updated", 1)).await;
    assert_eq!(unread.refusal(), (400, "invalid service version ''"));
}
