//! Tests with nodes and strangers that send too much, too often, or nothing: others are served, and
//! logs stay small.

use mesh_state::fixtures::EtcdProcess;
use mesh_state::proto::agent_message::Body as Up;
use mesh_state::proto::{self, AgentMessage};
use mesh_state::task::{TaskState, TaskStatus};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::control_process::{Manager, ca_pem};
use crate::support::eventually;
use crate::support::node::{Session, join};
use crate::{create, run_task, service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_report_ends_its_own_session_and_holds_up_no_other() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
    let poisoner = join(manager.nodes, &token, &ca, "node-1").await.unwrap();
    let good = join(manager.nodes, &token, &ca, "node-2").await.unwrap();
    let mut hostile = Session::open(manager.nodes, &poisoner, 0).await.unwrap();
    let mut session = Session::open(manager.nodes, &good, 0).await.unwrap();
    let mut spec = service("web", 8080);
    spec["TaskTemplate"]["Placement"] = serde_json::json!({"Constraints": [format!("node.id=={}", good.id)]});
    create(&manager, &spec).await;
    let task = session
        .until("the task", |seen| seen.assignments.last().map(|one| one.task.id.to_string()))
        .await
        .unwrap();

    let status =
        TaskStatus { state: TaskState::Running, message: "x".repeat(1_500_000), ..TaskStatus::default() };
    let reported = proto::TaskStatus {
        task_id: task.clone(),
        status_json: serde_json::to_string(&status).unwrap(),
        number: 0,
    };
    let message = Up::Statuses(proto::TaskStatuses { statuses: vec![reported] });
    hostile.up.send(AgentMessage { body: Some(message) }).await.unwrap();
    let end = hostile.until("the end", |_| None::<()>).await.unwrap_err();
    assert_eq!(end.code(), Code::InvalidArgument, "{end}");
    assert!(end.message().contains("a task's status has 15"), "the node is told: {}", end.message());

    run_task(&session, &task, "10.128.0.2").await;
    session
        .until("an acknowledgement", |seen| seen.acknowledged.contains(&task).then_some(()))
        .await
        .unwrap();
    let refused = eventually("the refusal in the metrics", async || {
        let text = manager.admin("metrics").await?;
        text.lines().find(|line| line.contains(r#"listener="nodes",reason="too-large""#)).map(str::to_owned)
    })
    .await;
    assert!(refused.ends_with(" 1"), "saw {refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_may_call_join_and_fills_no_log() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
    let before = manager.log().len();
    let mut codes = Vec::new();
    // A call that is too large to be read at all doesn't count.
    for (hostname, calls) in
        [("x\n".repeat(2 << 20), 5), ("x".repeat(300), 5), ("a\nFORGED line".to_owned(), 40)]
    {
        for _ in 0..calls {
            let refused = join(manager.nodes, "SWMTKN-1-wrong", &ca, &hostname).await;
            codes.push(refused.err().expect("a wrong token was taken").code());
        }
    }
    for expected in [Code::OutOfRange, Code::InvalidArgument, Code::PermissionDenied, Code::ResourceExhausted]
    {
        assert!(codes.contains(&expected), "expected {expected:?} among {codes:?}");
    }
    let log = manager.log();
    assert!(log.len() - before < 200_000, "the log grew by {} bytes", log.len() - before);
    assert!(!log.lines().any(|line| line.starts_with("FORGED")), "a caller wrote a line of the log");
    eventually("a member from the same address", async || {
        join(manager.nodes, &token, &ca, "node-1").await.ok().map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_keep_nobody_from_being_served() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
    let member = join(manager.nodes, &token, &ca, "node-1").await.unwrap();
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    let mut held = Vec::new();
    for address in [manager.metrics, manager.nodes] {
        for _ in 0..100 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The client that is turned away may already be disconnected.
            if stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.is_ok() {
                held.push(stream);
            }
        }
    }
    eventually("metrics", async || manager.admin("readyz").await).await;
    eventually("a new member", async || {
        let member = tokio::spawn({
            let (nodes, token, ca) = (manager.nodes, token.clone(), ca.clone());
            async move { join(nodes, &token, &ca, "node-2").await }
        });
        member.await.ok()?.ok().map(drop)
    })
    .await;
    create(&manager, &service("web", 8080)).await;
    session.until("an assignment", |seen| seen.assignments.first().map(|_| ())).await.unwrap();
    let docker = manager.docker();
    let (status, _) = docker.get("/services").await.unwrap();
    assert_eq!(status, 200, "the API's answer");
}
