//! Tests that secrets and configs go from the API to the one node that needs them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Method;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::proto::Dependency;
use mesh_state::proto::dependency::Found;
use mesh_state::store::Store as _;
use mesh_state::task::TaskState;
use serde_json::json;

use crate::support::control_process::{Manager, ca_pem};
use crate::support::node::{Session, join};
use crate::{create, service};

/// A value that only the node may see.
const VALUE: &str = "correct horse battery staple";

async fn store(manager: &Manager, kind: &str, data: &[u8]) -> String {
    let body = json!({"Name": "x", "Data": BASE64.encode(data)});
    let path = format!("/{kind}/create");
    let (status, answer) = manager.docker().call(Method::POST, &path, Some(&body)).await.unwrap();
    assert_eq!(status, 201, "answer to {path}: {answer}");
    answer["ID"].as_str().unwrap().to_owned()
}

fn of<'a>(session: &'a Session, id: &str) -> Vec<&'a Dependency> {
    session.dependencies.iter().filter(|one| one.id == id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_sent_what_its_tasks_refer_to_and_no_other_is() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
    let member = join(manager.nodes, &token, &ca, "node-1").await.unwrap();
    let other = join(manager.nodes, &token, &ca, "node-2").await.unwrap();
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    let mut bystander = Session::open(manager.nodes, &other, 0).await.unwrap();

    let secret = store(&manager, "secrets", VALUE.as_bytes()).await;
    // As long as Swarm allows: a few of them exceed gRPC's usual message size.
    let longest: Vec<u8> = (0..1_023_999_u32).map(|n| n.to_le_bytes()[0]).collect();
    let config = store(&manager, "configs", &longest).await;
    let mut spec = service("web", 8080);
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Secrets"] = json!([{"File": {"Name": "x"}, "SecretID": secret, "SecretName": "x"}]);
    container["Configs"] = json!([{"File": {"Name": "x"}, "ConfigID": config, "ConfigName": "x"}]);
    spec["TaskTemplate"]["Placement"] = json!({"Constraints": [format!("node.id=={}", member.id)]});
    create(&manager, &spec).await;

    let both = |seen: &Session| (seen.dependencies.len() == 2).then_some(());
    session.until("secret and config", both).await.unwrap();
    assert!(!session.assignments.is_empty(), "a delivery came before the task that needs it");
    let found = of(&session, &secret)[0];
    assert_eq!((found.kind.as_str(), &found.found), ("secret", &Some(Found::Data(VALUE.into()))));
    assert!(of(&session, &config)[0].found == Some(Found::Data(longest)), "the longest config came changed");

    // A node that reconnects gets it again, until its task has its files.
    let task = session.assignments[0].task.id.to_string();
    drop(session);
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    session.until("both again", both).await.unwrap();
    session.report(&task, TaskState::Starting, None).await;
    let told = |seen: &Session| seen.acknowledged.contains(&task).then_some(());
    session.until("the acknowledgement", told).await.unwrap();
    drop(session);
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    session.until("the assignment", |seen| (!seen.assignments.is_empty()).then_some(())).await.unwrap();
    session.until("a table", |seen| (!seen.tables.is_empty()).then_some(())).await.unwrap();

    bystander.until("a table", |seen| (!seen.tables.is_empty()).then_some(())).await.unwrap();
    for (node, seen) in [("a node whose task has started", &session), ("a bystander", &bystander)] {
        assert!(seen.dependencies.is_empty(), "{node} was sent {} objects", seen.dependencies.len());
    }
    for item in etcd.store().await.unwrap().list("/").await.unwrap().items {
        let sealed = !String::from_utf8_lossy(&item.value).contains(VALUE);
        assert!(sealed, "{} holds the value in clear", item.key);
    }
    assert!(!manager.log().contains(VALUE), "the manager logged the value");
}
