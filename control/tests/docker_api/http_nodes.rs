//! Tests of nodes, networks and the cluster itself over HTTP.

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
async fn a_worker_with_a_managers_hostname_is_not_that_manager() {
    let cluster = Cluster::start().await;
    cluster.rename(2, "node-1").await;
    let info = cluster.get("/info").await.body;
    assert_eq!(info["Swarm"]["NodeID"], node_id(1));
    assert_eq!(info["Swarm"]["Managers"], 1);
    assert_eq!(info["Swarm"]["RemoteManagers"].as_array().map(Vec::len), Some(1));
    assert_eq!(cluster.get("/nodes/self").await.body["ID"], node_id(1));
    let nodes = cluster.get("/nodes").await.body;
    let of_one_name: Vec<_> =
        nodes.as_array().unwrap().iter().filter(|node| node["Description"]["Hostname"] == "node-1").collect();
    assert_eq!(of_one_name.len(), 2, "both are shown");
    for node in of_one_name {
        let is_manager = node["ID"] == node_id(1);
        assert_eq!(node.get("ManagerStatus").is_some(), is_manager, "{node}");
    }
    assert_eq!(
        cluster.get("/nodes/node-1").await.refusal(),
        (400, "node node-1 is ambiguous (2 matches found)")
    );
    // A promoted worker is a manager by its role alone, and can be removed.
    let worker = cluster.get(&format!("/nodes/{}", node_id(2))).await.body;
    let mut spec = worker["Spec"].clone();
    spec["Role"] = json!("manager");
    let path = format!("/nodes/{}/update?version={}", node_id(2), worker["Version"]["Index"]);
    assert_eq!(cluster.post(&path, &spec).await.status, 200);
    let last = cluster.get("/nodes/self").await.body;
    let mut spec = last["Spec"].clone();
    spec["Role"] = json!("worker");
    let path = format!("/nodes/{}/update?version={}", node_id(1), last["Version"]["Index"]);
    assert_eq!(cluster.post(&path, &spec).await.status, 400, "the other one runs no manager");
}

#[tokio::test]
async fn only_the_agent_announces_the_managers_node() {
    let cluster = Cluster::start().await;
    let tell = async |id: &str| cluster.status_of_post(&format!("/mesh/node/{id}")).await;
    assert_eq!(tell(&node_id(2)).await, 200, "the machine was set up again");
    assert_eq!(cluster.get("/nodes/self").await.body["ID"], node_id(2));
    assert_eq!(tell("no%20id").await, 400);
    assert_eq!(cluster.get("/nodes/self").await.body["ID"], node_id(2));
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
    let last = set(1, &|spec| spec["Role"] = json!("worker")).await;
    assert_eq!(
        last.refusal(),
        (
            400,
            "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm"
        )
    );
    assert_eq!(set(2, &|spec| spec["Role"] = json!("manager")).await.status, 200);
    let promoted = cluster.get("/nodes/node-2").await.body;
    assert_eq!(promoted["Spec"]["Role"], "manager");
    assert_eq!(promoted.get("ManagerStatus"), None, "the role alone makes no manager");
    assert_eq!(set(1, &|spec| spec["Role"] = json!("worker")).await.status, 400, "no other manager lives");
    assert_eq!(set(2, &|spec| spec["Role"] = json!("worker")).await.status, 200);
    let stale = cluster
        .post(
            &format!("/nodes/{}/update?version=1", node_id(2)),
            &json!({"Role": "worker", "Availability": "active"}),
        )
        .await;
    assert_eq!(stale.refusal(), (500, "rpc error: code = Unknown desc = update out of sequence"));
}

#[tokio::test]
async fn only_a_node_that_is_down_is_removed_without_force() {
    let cluster = Cluster::start().await;
    let refused = cluster.delete("/nodes/node-3").await;
    assert_eq!(
        refused.refusal(),
        (
            400,
            format!(
                "rpc error: code = FailedPrecondition desc = node {} is not down and can't be removed",
                node_id(3)
            )
            .as_str()
        )
    );
    cluster.believe(3, NodeState::Down).await;
    assert_eq!(cluster.delete("/nodes/node-3").await.status, 200);
    assert_eq!(cluster.get("/nodes/node-3").await.status, 404);
    assert_eq!(cluster.delete("/nodes/node-2?force=1").await.status, 200);
    for path in ["/nodes/node-1", "/nodes/node-1?force=1"] {
        let manager = cluster.delete(path).await;
        let (status, message) = manager.refusal();
        assert!(status == 400 && message.contains("must be demoted to worker"), "{path}: {message}");
    }
}

#[tokio::test]
async fn the_cluster_shows_its_tokens_and_this_node() {
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
    assert_eq!(
        info["Swarm"]["Cluster"].get("JoinTokens"),
        None,
        "tokens are shown to managers' clients only"
    );
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
    assert_eq!(
        removed.refusal(),
        (
            400,
            "rpc error: code = FailedPrecondition desc = network ingress belongs to mesh and can't be removed"
        )
    );
}

#[tokio::test]
async fn the_swarm_accepts_the_changes_that_mesh_supports() {
    let cluster = Cluster::start().await;
    let before = cluster.get("/swarm").await.body;
    let update = async |change: &dyn Fn(&mut serde_json::Value), rotate: &str| {
        let mut swarm = cluster.get("/swarm").await.body;
        change(&mut swarm["Spec"]);
        let path = format!("/swarm/update?version={}{rotate}", swarm["Version"]["Index"]);
        cluster.post(&path, &swarm["Spec"]).await
    };
    let limit = update(&|spec| spec["Orchestration"]["TaskHistoryRetentionLimit"] = json!(2), "").await;
    assert_eq!(limit.status, 200, "{}", limit.body);
    let rotated = update(&|_| {}, "&rotateWorkerToken=true&rotateManagerToken=false").await;
    assert_eq!(rotated.status, 200, "{}", rotated.body);
    let after = cluster.get("/swarm").await.body;
    assert_eq!(after["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"], 2);
    assert_ne!(after["JoinTokens"]["Worker"], before["JoinTokens"]["Worker"]);
    assert_eq!(after["JoinTokens"]["Manager"], before["JoinTokens"]["Manager"]);
    let refused = update(&|spec| spec["Raft"]["SnapshotInterval"] = json!(7), "").await;
    assert_eq!(refused.status, 501, "{}", refused.body);
    let stale = cluster.post("/swarm/update?version=1", &json!({})).await;
    assert_eq!(stale.refusal(), (500, "rpc error: code = Unknown desc = update out of sequence"));
    for (path, status, message) in [
        ("/swarm/init", 503, "This node is already part of a swarm."),
        ("/swarm/join", 503, "This node is already part of a swarm."),
        ("/swarm/leave", 503, "You are attempting to leave the swarm"),
        ("/swarm/leave?force=1", 501, "leaving is served on the node's own docker.sock"),
        ("/swarm/unlock", 409, "swarm is not locked"),
        ("/swarm/nonsense", 404, "page not found"),
    ] {
        let answer = cluster.post(path, &json!({})).await;
        let (seen, text) = answer.refusal();
        assert!(seen == status && text.starts_with(message), "{path} was answered {seen}: {text}");
    }
}

#[tokio::test]
async fn every_manager_shows_the_unlock_key_of_a_cluster_with_autolock() {
    let cluster = Cluster::start().await;
    let update = async |locks: bool, rotate: &str| {
        let mut swarm = cluster.get("/swarm").await.body;
        swarm["Spec"]["EncryptionConfig"]["AutoLockManagers"] = json!(locks);
        let path = format!("/swarm/update?version={}{rotate}", swarm["Version"]["Index"]);
        let answer = cluster.post(&path, &swarm["Spec"]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(
            cluster.get("/info").await.body["Swarm"]["Cluster"]["Spec"]["EncryptionConfig"]["AutoLockManagers"],
            locks
        );
        cluster.get("/swarm/unlockkey").await.body["UnlockKey"].as_str().unwrap().to_owned()
    };
    assert_eq!(cluster.get("/swarm/unlockkey").await.body, json!({"UnlockKey": ""}));
    assert_eq!(update(false, "&rotateManagerUnlockKey=true").await, "", "nothing to rotate");
    let first = update(true, "").await;
    assert!(first.starts_with("SWMKEY-1-") && first.len() == 52, "the key is {first}");
    assert_eq!(update(true, "").await, first, "an update that changes nothing");
    let second = update(true, "&rotateManagerUnlockKey=true").await;
    assert_ne!(second, first);
    assert_eq!(update(false, "").await, "");
}
