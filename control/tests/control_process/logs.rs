//! Tests the logs of a node whose session another manager has.

use hyper::Method;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::proto::{LogBatch, LogEnd, LogLine};
use tonic::Code;

use crate::support::control_process::{Manager, ca_pem};
use crate::support::eventually;
use crate::support::node::{Session, join, publish_logs};
use crate::{create, run_task, service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_from_a_node_whose_session_another_manager_has() {
    let etcd = EtcdProcess::start().await.unwrap();
    let first = Manager::start("m1", &etcd, None).await;
    let second = Manager::start("m2", &etcd, Some(&first)).await;
    let (token, ca) = (first.join_token(), ca_pem(&etcd).await);
    let member = join(second.nodes, &token, &ca, "node-1").await.unwrap();
    let stranger = join(second.nodes, &token, &ca, "node-2").await.unwrap();
    let mut session = Session::open(second.nodes, &member, 0).await.unwrap();
    create(&first, &service("web", 8080)).await;
    let task = session
        .until("the task", |seen| seen.assignments.last().map(|one| one.task.id.to_string()))
        .await
        .unwrap();
    run_task(&session, &task, "10.128.0.2").await;
    eventually("a running task", async || {
        let (_, task) = first.docker().get(&format!("/tasks/{task}")).await.ok()?;
        (task["Status"]["State"] == "running").then_some(())
    })
    .await;

    let docker = first.docker();
    let read =
        tokio::spawn(
            async move { docker.bytes(Method::GET, "/services/web/logs?stdout=1&stderr=1", None).await },
        );
    let ask = session.until("a request for logs", |seen| seen.logs_wanted.last().cloned()).await.unwrap();
    assert_eq!(ask.manager, first.nodes.to_string(), "the manager that the node is to send to");
    assert_eq!((ask.logs[0].task_id.as_str(), ask.follow), (task.as_str(), false));
    let line = LogLine { task_id: task.clone(), data: b"hello\n".to_vec(), ..LogLine::default() };
    let end = LogEnd { task_id: task, ..LogEnd::default() };
    let batch = LogBatch { ask_id: ask.ask_id, lines: vec![], ends: vec![] };
    let told = LogBatch { ask_id: String::new(), lines: vec![line], ends: vec![end] };
    let refused = publish_logs(first.nodes, &stranger, vec![batch.clone()]).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "another node answered: {refused}");
    publish_logs(first.nodes, &member, vec![batch, told]).await.unwrap();
    let (status, bytes) = read.await.unwrap().unwrap();
    assert_eq!((status, &bytes[..]), (200, &b"\x01\0\0\0\0\0\0\x06hello\n"[..]));
}
