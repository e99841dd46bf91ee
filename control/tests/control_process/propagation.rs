//! Tests how soon changes reach nodes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hyper::Method;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::proto::agent_message::Body;
use mesh_state::proto::{AgentMessage, BackendLoad, Heartbeat};
use mesh_state::task::TaskState;
use serde_json::json;

use crate::support::control_process::{Manager, ca_pem};
use crate::support::node::{Member, Session, join, report_end};
use crate::{create, run_task, service};

/// Prints the median and the 99th percentile of durations, and returns the median.
fn summary(what: &str, mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    let at = |percent: usize| durations[(durations.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p99 {:?} of {}", at(50), at(99), durations.len());
    at(50)
}

/// A service whose tasks all run on one node, with the sessions of that node and of another.
struct Running {
    node: Session,
    other: Session,
    service_id: String,
    spec: serde_json::Value,
    tasks: BTreeSet<String>,
    /// The node that runs them.
    runs: Member,
}

/// Runs tasks on a node of manager `first`; the other node has its session with manager `second`.
async fn run_tasks(etcd: &EtcdProcess, first: &Manager, second: &Manager) -> Running {
    const TASKS: usize = 20;
    let (token, ca) = (first.join_token(), ca_pem(etcd).await);
    let runs = join(first.nodes, &token, &ca, "node-1").await.unwrap();
    let watches = join(first.nodes, &token, &ca, "node-2").await.unwrap();
    let mut node = Session::open(first.nodes, &runs, 0).await.unwrap();
    let mut other = Session::open(second.nodes, &watches, 0).await.unwrap();
    let mut spec = service("web", 8080);
    spec["Mode"]["Replicated"]["Replicas"] = json!(TASKS);
    spec["TaskTemplate"]["RestartPolicy"] = json!({"Condition": "none"});
    spec["TaskTemplate"]["Placement"] = json!({"Constraints": [format!("node.id=={}", runs.id)]});
    let service_id = create(first, &spec).await;
    let tasks: BTreeSet<String> = node
        .until("all tasks", |seen| {
            let tasks: BTreeSet<_> = seen.assignments.iter().map(|one| one.task.id.to_string()).collect();
            (tasks.len() == TASKS).then_some(tasks)
        })
        .await
        .unwrap();
    for (task, host) in tasks.iter().zip(2..) {
        run_task(&node, task, &format!("10.128.0.{host}")).await;
    }
    let all = |seen: &Session| tasks.iter().all(|task| seen.backend_of(task).is_some()).then_some(());
    node.until("all backends", all).await.unwrap();
    other.until("all backends", all).await.unwrap();
    Running { node, other, service_id, spec, tasks, runs }
}

/// Fails every task, and measures how long the other node takes to learn of each.
async fn removals(node: &mut Session, other: &mut Session, tasks: &BTreeSet<String>) -> Vec<Duration> {
    let mut removals = Vec::new();
    for task in tasks {
        let backend = other.backend_of(task).unwrap().id;
        let gone = |seen: &Session| {
            seen.tables.iter().any(|table| table.removed_backend_ids.contains(&backend)).then_some(())
        };
        let reported = Instant::now();
        node.report(task, TaskState::Failed, None).await;
        other.until("the removal", gone).await.unwrap();
        removals.push(reported.elapsed());
        node.until("the removal", gone).await.unwrap();
    }
    removals
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_reach_the_other_nodes_at_once() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let Running { mut node, mut other, service_id, mut spec, tasks, .. } =
        run_tasks(&etcd, &manager, &manager).await;
    let mut policies = Vec::new();
    for policy in ["least-load", "random"].into_iter().cycle().take(30) {
        spec["Labels"] = json!({"mesh.lb.policy": policy});
        let (_, found) = manager.docker().get("/services/web").await.unwrap();
        let update = format!("/services/{service_id}/update?version={}", found["Version"]["Index"]);
        let (status, answer) = manager.docker().call(Method::POST, &update, Some(&spec)).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        let answered = Instant::now();
        let newest = |seen: &Session| {
            let mut services = seen.tables.iter().flat_map(|table| &table.services);
            services.next_back().filter(|newest| newest.policy == policy).map(drop)
        };
        other.until("the policy", newest).await.unwrap();
        policies.push(answered.elapsed());
        node.until("the policy", newest).await.unwrap();
    }
    assert_eq!(node.assignments.len(), tasks.len(), "a policy told the node to run something");
    let policy = summary("policy, from the API's answer", policies);
    assert!(policy < Duration::from_millis(200), "a policy took {policy:?}");

    let first = node.backend_of(&tasks.iter().next().cloned().unwrap()).unwrap().id;
    let loads = vec![BackendLoad { backend_id: first, load: 99 }];
    let heartbeat = AgentMessage {
        body: Some(Body::Heartbeat(Heartbeat { loads: loads.clone(), ..Heartbeat::default() })),
    };
    let until_told = async {
        loop {
            // The session's own heartbeats have no loads.
            node.up.send(heartbeat.clone()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        told = other.until("the load", |seen| seen.loads.first().copied()) => assert_eq!(told.unwrap(), loads[0]),
        () = until_told => {}
    }

    let took = removals(&mut node, &mut other, &tasks).await;
    let removal = summary("dead task, from its node's report", took);
    assert!(removal < Duration::from_millis(100), "a dead task took {removal:?}");
}

/// The report goes from one manager to the nodes of the others through etcd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_task_reaches_the_nodes_of_another_manager() {
    let etcd = EtcdProcess::start().await.unwrap();
    let first = Manager::start("m1", &etcd, None).await;
    let second = Manager::start("m2", &etcd, Some(&first)).await;
    let mut running = run_tasks(&etcd, &first, &second).await;
    let took = removals(&mut running.node, &mut running.other, &running.tasks).await;
    let removal = summary("dead task, at a node of another manager", took);
    assert!(removal < Duration::from_millis(100), "a dead task took {removal:?}");
}

/// Without the store, managers don't learn of each other's nodes: the node reports its task's end
/// to every manager.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_task_leaves_the_table_of_another_managers_nodes_without_etcd() {
    let mut etcd = EtcdProcess::start().await.unwrap();
    let first = Manager::start("m1", &etcd, None).await;
    let second = Manager::start("m2", &etcd, Some(&first)).await;
    let Running { node: _node, mut other, runs, tasks, .. } = run_tasks(&etcd, &first, &second).await;
    etcd.stop();
    let task = tasks.first().unwrap();
    let backend = other.backend_of(task).unwrap().id;
    let gone = |seen: &Session| {
        seen.tables.iter().any(|table| table.removed_backend_ids.contains(&backend)).then_some(())
    };
    let reported = Instant::now();
    report_end(second.nodes, &runs, task).await.unwrap();
    other.until("the removal", gone).await.unwrap();
    let took = reported.elapsed();
    assert!(took < Duration::from_millis(500), "a dead task took {took:?}");
    etcd.resume().await.unwrap();
}

/// A container that dies while etcd is away leaves the table all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_task_leaves_the_table_without_etcd() {
    let mut etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let member = join(manager.nodes, &manager.join_token(), &ca_pem(&etcd).await, "node-1").await.unwrap();
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    create(&manager, &service("web", 8080)).await;
    let task =
        session.until("a task", |seen| seen.assignments.last().cloned()).await.unwrap().task.id.to_string();
    run_task(&session, &task, "10.128.0.2").await;
    let backend = session.until("the backend", |seen| seen.backend_of(&task)).await.unwrap().id;
    etcd.stop();
    session.report(&task, TaskState::Failed, None).await;
    session
        .until("the removal", |seen| {
            seen.tables.iter().any(|table| table.removed_backend_ids.contains(&backend)).then_some(())
        })
        .await
        .unwrap();
    etcd.resume().await.unwrap();
    let replaced =
        |seen: &Session| seen.assignments.last().filter(|one| one.task.id.as_str() != task).map(drop);
    session.until("the replacement", replaced).await.unwrap();
}
