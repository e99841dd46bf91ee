//! Networks over HTTP: what they are given, what they may ask for, and how they are shown.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster};

/// Creates a network with these fields beside its name and driver.
async fn create(cluster: &Cluster, name: &str, fields: &Value) -> Answer {
    let mut body = json!({"Name": name, "Driver": "overlay"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    cluster.post("/networks/create", &body).await
}

async fn created(cluster: &Cluster, name: &str, fields: &Value) -> Value {
    let answer = create(cluster, name, fields).await;
    assert_eq!(answer.status, 201, "creating {name} with {fields}: {}", answer.body);
    cluster.get(&format!("/networks/{name}")).await.body
}

#[tokio::test]
async fn networks_get_subnets_of_the_pool_in_turn() {
    let cluster = Cluster::start().await;
    let shown = cluster.get("/info").await.body["Swarm"]["Cluster"].clone();
    assert_eq!((&shown["DefaultAddrPool"], &shown["SubnetSize"]), (&json!(["10.0.0.0/8"]), &json!(24)));
    let first = created(&cluster, "first", &json!({})).await;
    let config = json!([{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"}]);
    assert_eq!(first["IPAM"], json!({"Driver": "default", "Options": null, "Config": config}));
    assert_eq!(cluster.delete("/networks/first").await.status, 204);
    let second = created(&cluster, "second", &json!({})).await;
    assert_eq!(second["IPAM"]["Config"][0]["Subnet"], "10.0.1.0/24", "first's subnet rests");
}

#[tokio::test]
async fn networks_made_at_once_get_no_subnet_and_no_number_twice() {
    let cluster = Cluster::start().await;
    let none = json!({});
    let made = tokio::join!(
        create(&cluster, "a", &none),
        create(&cluster, "b", &none),
        create(&cluster, "c", &none),
        create(&cluster, "d", &none),
    );
    for answer in [made.0, made.1, made.2, made.3] {
        assert_eq!(answer.status, 201, "{}", answer.body);
    }
    let snapshot = cluster.context.snapshot();
    let own = || snapshot.networks.values().filter(|network| !network.ingress);
    assert_eq!(own().map(|network| network.subnet).collect::<BTreeSet<_>>().len(), 4);
    assert_eq!(own().map(|network| network.number).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3, 4]));
}

#[tokio::test]
async fn a_network_is_made_and_shown_as_it_was_asked_for() {
    let cluster = Cluster::start().await;
    let config = json!({"Subnet": "172.30.0.0/24", "IPRange": "172.30.0.128/25", "Gateway": "172.30.0.254"});
    let asked = json!({
        "IPAM": {"Driver": "default", "Options": {}, "Config": [config]}, "Internal": true, "Attachable": true,
        "Options": {"com.docker.network.driver.mtu": "1400"}, "Labels": {"a": "1"},
    });
    let shown = created(&cluster, "app", &asked).await;
    assert_eq!(shown["IPAM"]["Config"], json!([config]));
    for field in ["Internal", "Attachable", "Options", "Labels"] {
        assert_eq!(shown[field], asked[field], "{field}");
    }
    let overlapping = json!({"IPAM": {"Config": [{"Subnet": "172.30.0.0/16"}]}});
    let refused = create(&cluster, "other", &overlapping).await;
    let message = "Pool overlaps with other one on this address space: 172.30.0.0/16 overlaps 172.30.0.0/24 of the network app; \
                   choose another --subnet";
    assert_eq!(refused.refusal(), (403, message));
}

#[tokio::test]
async fn network_options_that_are_not_served_are_refused() {
    let cluster = Cluster::start().await;
    for (options, named) in [
        (json!({"Options": {"encrypted": "true"}}), "--opt encrypted"),
        (json!({"EnableIPv6": true}), "--ipv6"),
        (json!({"IPAM": {"Config": [{"Subnet": "10.5.0.0/24"}, {"Subnet": "10.6.0.0/24"}]}}), "--subnet given twice"),
    ] {
        let answer = create(&cluster, "n", &options).await;
        let (status, message) = answer.refusal();
        assert!(status == 501 && message.contains(named), "for {options}: {status} {message}");
    }
    assert_eq!(cluster.get("/networks").await.body.as_array().map(Vec::len), Some(1), "nothing was made");
}

#[tokio::test]
async fn the_clusters_networks_are_found_in_their_own_scope_only() {
    let cluster = Cluster::start().await;
    for scope in ["local", "global", "nonsense"] {
        let answer = cluster.get(&format!("/networks/ingress?scope={scope}")).await;
        assert_eq!(answer.refusal(), (404, "network ingress not found"), "in scope {scope}");
    }
    assert_eq!(cluster.get("/networks/ingress?scope=swarm").await.status, 200);
}
