//! Nodes, networks and the cluster itself over HTTP.

use mesh_state::keys;
use mesh_state::node::NodeState;
use mesh_state::store::Op;
use serde_json::json;

use crate::cluster::{Cluster, node_id};
use crate::http::encoded;

#[tokio::test]
async fn nodes_have_dockers_shape_and_say_who_leads() {
    let cluster = Cluster::start().await;
    cluster.believe(2, NodeState::Silent).await;
    cluster.believe(3, NodeState::Down).await;
    let manager = cluster.get("/nodes/node-1").await.body;
    assert_eq!(manager["ID"], node_id(1));
    assert_eq!(
        manager["ManagerStatus"],
        json!({"Leader": true, "Reachability": "reachable", "Addr": "10.77.0.11:2377"})
    );
    assert_eq!(manager["Description"]["Platform"], json!({"Architecture": "x86_64", "OS": "linux"}));
    assert_eq!(manager["Description"]["Resources"]["NanoCPUs"], 2_000_000_000_i64);
    assert_eq!(manager["Description"]["Engine"]["EngineVersion"], "20.10.24");
    for field in ["TrustRoot", "CertIssuerSubject", "CertIssuerPublicKey"] {
        let text = manager["Description"]["TLSInfo"][field].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{field} is empty");
    }
    let silent = cluster.get("/nodes/node-2").await.body;
    assert_eq!(
        (&silent["Status"]["State"], &silent["Mesh"]["Liveness"]),
        (&json!("ready"), &json!("silent"))
    );
    assert_eq!(silent.get("ManagerStatus"), None, "a worker has no manager status");
    let down = cluster.get("/nodes/node-3").await.body;
    assert_eq!(
        down["Status"],
        json!({"State": "down", "Message": "heartbeat failure", "Addr": "10.77.0.13"})
    );
    cluster.write(vec![Op::delete(keys::manager("node-1")), Op::delete(keys::LEADER)]).await;
    let lost = cluster.get("/nodes/node-1").await.body;
    assert_eq!(lost["ManagerStatus"], json!({"Reachability": "unreachable", "Addr": "10.77.0.11:2377"}));
    assert_eq!(cluster.get("/nodes/self").await.body["ID"], node_id(1));
    assert_eq!(cluster.get("/nodes/nope").await.refusal(), (404, "node nope not found"));
}

#[tokio::test]
async fn nodes_are_filtered_labelled_and_drained() {
    let cluster = Cluster::start().await;
    let set = async |number: u8, change: &dyn Fn(&mut serde_json::Value)| {
        let mut node = cluster.get(&format!("/nodes/{}", node_id(number))).await.body;
        change(&mut node["Spec"]);
        let path = format!("/nodes/{}/update?version={}", node_id(number), node["Version"]["Index"]);
        cluster.post(&path, &node["Spec"]).await
    };
    let labelled = set(2, &|spec| {
        spec["Labels"] = json!({"zone": "a"});
        spec["Availability"] = json!("drain");
    });
    assert_eq!(labelled.await.status, 200);
    let node = cluster.get("/nodes/node-2").await.body;
    assert_eq!(node["Spec"], json!({"Labels": {"zone": "a"}, "Role": "worker", "Availability": "drain"}));
    for (filters, expected) in [
        (r#"{"node.label":["zone=a"]}"#, vec!["node-2"]),
        (r#"{"role":["manager"]}"#, vec!["node-1"]),
        (r#"{"name":["node-3"]}"#, vec!["node-3"]),
        (r#"{"membership":["pending"]}"#, vec![]),
        (r#"{"membership":["accepted"],"role":["worker"]}"#, vec!["node-2", "node-3"]),
    ] {
        let answer = cluster.get(&format!("/nodes?filters={}", encoded(filters))).await;
        let names: Vec<_> = answer
            .body
            .as_array()
            .unwrap()
            .iter()
            .map(|node| node["Description"]["Hostname"].clone())
            .collect();
        assert_eq!(names, expected, "filtering by {filters}");
    }
    let unknown = set(2, &|spec| spec["Availability"] = json!("sleepy")).await;
    assert_eq!(unknown.status, 400, "{}", unknown.body);
    assert_eq!(set(2, &|spec| spec["Role"] = json!("manager")).await.status, 501);
    assert_eq!(set(1, &|spec| spec["Role"] = json!("worker")).await.status, 501);
    let stale = cluster.post(&format!("/nodes/{}/update?version=1", node_id(2)), &json!({})).await;
    assert_eq!(stale.refusal(), (500, "update out of sequence"));
}

#[tokio::test]
async fn only_a_node_that_is_down_is_removed_without_force() {
    let cluster = Cluster::start().await;
    let refused = cluster.delete("/nodes/node-3").await;
    assert_eq!(
        refused.refusal(),
        (400, format!("node {} is not down and can't be removed", node_id(3)).as_str())
    );
    cluster.believe(3, NodeState::Down).await;
    assert_eq!(cluster.delete("/nodes/node-3").await.status, 200);
    assert_eq!(cluster.get("/nodes/node-3").await.status, 404);
    assert_eq!(cluster.delete("/nodes/node-2?force=1").await.status, 200);
    let manager = cluster.delete("/nodes/node-1").await;
    assert_eq!(manager.status, 400, "{}", manager.body);
}

#[tokio::test]
async fn the_cluster_tells_its_tokens_and_this_node() {
    let cluster = Cluster::start().await;
    let swarm = cluster.get("/swarm").await.body;
    for role in ["Worker", "Manager"] {
        let token = swarm["JoinTokens"][role].as_str().unwrap();
        assert!(token.starts_with("SWMTKN-1-"), "expected a {role} token, saw {token}");
    }
    assert_ne!(swarm["JoinTokens"]["Worker"], swarm["JoinTokens"]["Manager"]);
    assert_eq!(swarm["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"], 5);
    let info = cluster.get("/v1.50/info").await.body;
    assert_eq!(info["Swarm"]["NodeID"], node_id(1));
    assert_eq!(info["Swarm"]["NodeAddr"], "10.77.0.11");
    assert_eq!(info["Swarm"]["LocalNodeState"], "active");
    assert_eq!(info["Swarm"]["ControlAvailable"], true);
    assert_eq!((&info["Swarm"]["Nodes"], &info["Swarm"]["Managers"]), (&json!(3), &json!(1)));
    assert_eq!(info["Swarm"]["RemoteManagers"], json!([{"NodeID": node_id(1), "Addr": "10.77.0.11:2377"}]));
    assert_eq!(info["Swarm"]["Cluster"]["ID"], swarm["ID"]);
    assert_eq!(info["Swarm"]["Cluster"].get("JoinTokens"), None, "tokens are not everybody's");
}

#[tokio::test]
async fn the_ingress_network_is_there_and_stays() {
    let cluster = Cluster::start().await;
    let networks = cluster.get("/networks").await.body;
    assert_eq!(networks.as_array().map(Vec::len), Some(1));
    assert_eq!(networks[0]["Name"], "ingress");
    assert_eq!((&networks[0]["Scope"], &networks[0]["Ingress"]), (&json!("swarm"), &json!(true)));
    let id = networks[0]["Id"].as_str().unwrap();
    assert_eq!(cluster.get(&format!("/networks/{id}?scope=swarm")).await.body["Name"], "ingress");
    let stack = encoded(r#"{"label":{"com.docker.stack.namespace=x":true}}"#);
    assert_eq!(cluster.get(&format!("/networks?filters={stack}")).await.body, json!([]));
    let removed = cluster.delete("/networks/ingress").await;
    assert_eq!(removed.refusal(), (400, "network ingress belongs to mesh and can't be removed"));
}
