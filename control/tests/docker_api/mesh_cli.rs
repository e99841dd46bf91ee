//! Tests of the `mesh` CLI against the API.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use mesh_state::node::NodeState;
use mesh_state::store::{MemoryStore, Op};
use mesh_state::task::{TaskState, TaskStatus};
use mesh_state::{codec, keys};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::cluster::{Cluster, node_id, published, spec};

async fn mesh(socket: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesh"))
        .args(arguments.split_whitespace())
        .env("MESH_HOST", format!("unix://{}", socket.display()))
        .output()
        .await
        .unwrap()
}

/// The exit code and the output: stdout, or stderr after a failure.
async fn outcome(socket: &Path, arguments: &str) -> (i32, String) {
    let output = mesh(socket, arguments).await;
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    (output.status.code().unwrap(), String::from_utf8_lossy(text).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_read_and_set_and_nothing_else_changes() {
    let cluster = Cluster::start().await;
    let socket = cluster.serve();
    let mut given = published("web", 80);
    given["Labels"] = json!({"mine": "too"});
    given["TaskTemplate"]["ContainerSpec"]["Novel"] = json!([1]);
    cluster.create(&given).await;
    let ok = |text: &str| (0, text.to_owned());
    assert_eq!(outcome(&socket, "policy get web").await, ok("round-robin"));
    let switched = ok("web: round-robin -> least-connections");
    assert_eq!(outcome(&socket, "policy set web least-connections").await, switched);
    assert_eq!(
        outcome(&socket, "-o json policy get web").await,
        ok(r#"{"policy":"least-connections","service":"web"}"#)
    );
    let before = cluster.service("web").await;
    assert_eq!(
        outcome(&socket, "policy set web least-connections").await,
        ok("web: least-connections already")
    );
    assert_eq!(
        cluster.service("web").await["Version"],
        before["Version"],
        "nothing to do, yet it was written"
    );
    given["Labels"]["mesh.lb.policy"] = json!("least-connections");
    assert_eq!(before["Spec"], given, "expected the spec with one label more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_shown_with_all_that_the_mesh_knows_of_it() {
    let cluster = Cluster::start().await;
    let socket = cluster.serve();
    let mut node = cluster.get("/nodes/node-1").await.body;
    node["Spec"]["Labels"] = json!({"mesh.lb.weight": "2"});
    let update = format!("/nodes/{}/update?version={}", node_id(1), node["Version"]["Index"]);
    assert_eq!(cluster.post(&update, &node["Spec"]).await.status, 200);
    let mut given = published("web", 80);
    given["Labels"] = json!({"mesh.lb.mode": "dsr", "mesh.lb.weight": "5"});
    cluster.create(&given).await;
    cluster.until("a task", |snapshot| snapshot.statuses.len() == 1).await;
    let (code, shown) = outcome(&socket, "service show web").await;
    assert_eq!(code, 0, "{shown}");
    let words: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    for line in [
        vec!["mesh.lb.mode", "dsr"],
        vec!["mesh.lb.policy", "round-robin", "(default)"],
        vec!["web.1", "node-1", "running", "10"],
    ] {
        assert!(words.contains(&line), "expected {line:?} in\n{shown}");
    }
    let (_, json) = outcome(&socket, "-o json service show web").await;
    let read: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&read["settings"]["mode"], &read["tasks"][0]["weight"]), (&json!("dsr"), &json!(10)));
    let (_, status) = outcome(&socket, "-o json status").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["nodes"][0]["weight"], &status["nodes"][1]["weight"]), (&json!(2), &json!(1)));
    let (code, said) = outcome(&socket, "service show nope").await;
    assert_eq!((code, said.as_str()), (3, "mesh: read service nope: service nope not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_exit_codes() {
    let store = MemoryStore::new();
    let cluster = Cluster::on(Arc::new(store.clone())).await;
    let socket = cluster.serve();
    let (code, said) = outcome(&socket, "policy set web fastest").await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("round-robin, random, least-connections"), "expected the good values, saw {said}");
    let (code, said) = outcome(&socket, "policy get nope").await;
    assert_eq!((code, said.as_str()), (3, "mesh: read service nope: service nope not found"));
    let (code, said) = outcome(Path::new("/nowhere/docker.sock"), "status").await;
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("/nowhere/docker.sock"), "expected the host, saw {said}");
    store.set_reachable(false);
    cluster.until_connected(false).await;
    let (code, said) = outcome(&socket, "status").await;
    assert_eq!(code, 0, "what the manager saw last: {said}");
    assert!(said.contains("can't reach etcd"), "expected the reason, saw {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_cluster() {
    let cluster = Cluster::start().await;
    let socket = cluster.serve();
    cluster.believe(2, NodeState::Silent).await;
    cluster.create(&spec("web", 0)).await;
    let (code, said) = outcome(&socket, "status -o json").await;
    assert_eq!(code, 0, "{said}");
    let status: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(status["leader"], "node-1");
    let nodes: Vec<_> =
        status["nodes"].as_array().unwrap().iter().map(|node| (&node["id"], &node["liveness"])).collect();
    let expected = [json!(node_id(1)), json!(node_id(2)), json!(node_id(3))];
    let liveness = [json!("ready"), json!("silent"), json!("ready")];
    assert_eq!(nodes, expected.iter().zip(&liveness).collect::<Vec<_>>());
    assert_eq!(
        (&status["services"][0]["running"], &status["services"][0]["desired"]),
        (&json!(0), &json!(0))
    );
    let (_, table) = outcome(&socket, "status").await;
    assert!(table.contains("web") && table.contains("silent"), "saw {table}");
    let (code, token) = outcome(&socket, "token worker").await;
    assert!(code == 0 && token.starts_with("SWMTKN-1-"), "saw {token}");
}

#[tokio::test(flavor = "multi_thread")]
async fn why_names_what_refuses_a_task_and_status_counts_it() {
    let cluster = Cluster::start().await;
    let socket = cluster.serve();
    cluster.create(&published("web", 80)).await;
    cluster.until("a task", |snapshot| snapshot.statuses.len() == 1).await;
    let mut given = published("picky", 81);
    given["TaskTemplate"]["Placement"] = json!({"Constraints": ["node.labels.zone==a"]});
    cluster.create(&given).await;
    cluster.until("its task", |snapshot| snapshot.statuses.len() == 2).await;
    // The tests' loop places tasks anywhere: this one becomes as the scheduler would leave it.
    let snapshot = cluster.context.snapshot();
    let placed =
        snapshot.tasks.values().find(|task| snapshot.spec_of(task).is_some_and(|spec| spec.name == "picky"));
    let mut waiting = placed.unwrap().value.clone();
    waiting.node_id = None;
    waiting.leader_status = TaskStatus {
        state: TaskState::Pending,
        err: "no suitable node (scheduling constraints not satisfied on 3 nodes)".to_owned(),
        ..TaskStatus::default()
    };
    let task = Op::put(keys::task(&waiting.id), codec::encode(&waiting).unwrap());
    cluster.write(vec![task, Op::delete(keys::status(&waiting.id))]).await;
    let (code, told) = outcome(&socket, "why picky").await;
    assert_eq!(code, 0, "{told}");
    for expected in ["picky: 0 of 1 task runs", "constraint node.labels.zone==a is not met (node-1"] {
        assert!(told.contains(expected), "expected {expected} in\n{told}");
    }
    let (_, slot) = outcome(&socket, "-o json why picky.1").await;
    let slot: Value = serde_json::from_str(&slot).unwrap();
    assert_eq!(slot["slots"][0]["refused"][0]["reason"], "constraint node.labels.zone==a is not met");
    assert_eq!(outcome(&socket, "why nosuch").await.0, 3, "an unknown service");
    let output = mesh(&socket, "why picky.9").await;
    assert_eq!(output.status.code(), Some(3), "an unknown slot");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no slot or task picky.9; it has picky.1"), "saw {said}");

    let (code, status) = outcome(&socket, "-o json status").await;
    assert_eq!(code, 0, "{status}");
    let status: Value = serde_json::from_str(&status).unwrap();
    let about: Vec<_> = status["problems"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(about, ["picky"], "problems of {status}");
    let output = mesh(&socket, "status --wait 1s").await;
    assert_eq!(output.status.code(), Some(6), "something stays wrong");
}
