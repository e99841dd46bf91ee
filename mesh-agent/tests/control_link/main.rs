//! The link against a manager made for the test: real TLS, real gRPC, one process.

mod manager;
mod renewal;

use std::sync::Arc;

use mesh_agent::control_link::AssignmentChange;
use mesh_agent::control_link::join::{JoinError, join};
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::node::{NodeDescription, PortClash};
use mesh_state::proto::agent_message::Body as Up;
use mesh_state::proto::control_message::Body as Down;
use mesh_state::proto::{self};
use mesh_state::spec::Protocol;
use mesh_state::task::{TaskState, TaskStatus};
use tokio::time::timeout;

use manager::*;

#[tokio::test]
async fn a_node_joins_with_a_good_token_only() {
    let ca = Arc::new(make_ca());
    let manager = serve(&ca).await;
    let identity = join(manager.address, &ca.token(), "test").await.expect("the node joins");
    assert_eq!(identity.node_id, NodeId::from("node-of-test"));
    assert_eq!(identity.role().expect("a role"), "worker");

    let other_secret =
        ca.token().as_str().replace(SECRET, "1111111111111111111111111").parse().expect("a token");
    let refused = join(manager.address, &other_secret, "test").await.expect_err("another secret is refused");
    assert!(matches!(refused, JoinError::Refused { .. }), "saw {refused:?}");

    let stranger =
        join(manager.address, &make_ca().token(), "test").await.expect_err("another CA is refused");
    let text = mesh_runtime::error_chain(&stranger);
    assert!(text.contains("not the one that the join token names"), "expected the reason, saw: {text}");
}

#[tokio::test]
async fn a_session_carries_everything_both_ways() {
    let ca = Arc::new(make_ca());
    let mut manager = serve(&ca).await;
    let identity = join(manager.address, &ca.token(), "test").await.expect("the node joins");
    let mut agent = start_link(vec![manager.address], identity);
    let mut session = next_session(&mut manager).await;
    assert_eq!((session.hello.address.as_str(), session.hello.table_generation), ("10.77.0.11", 0));
    timeout(SOON, agent.connected.wait_for(|up| *up)).await.expect("soon").expect("the link lives");
    assert_eq!(agent.keys.borrow().iter().count(), 1, "the relay key has come");
    assert_eq!(agent.view.borrow().subnet.map(|net| net.to_string()).as_deref(), Some("10.128.1.0/24"));
    session.hear(|up| matches!(up, Up::Heartbeat(_)).then_some(())).await;

    session.say(Down::Table(table(5, 0))).await;
    wait_for_generation(&mut agent, 5).await;
    agent.applied.send_replace(5);
    let acked = session.hear(|up| if let Up::TableAck(ack) = up { Some(ack.generation) } else { None }).await;
    assert_eq!(acked, 5);

    let clash = PortClash { protocol: Protocol::Tcp, port: 80, reason: "taken".into() };
    agent.clashes.send_replace(vec![clash]);
    let told = |up| if let Up::PortClashes(told) = up { told.clashes.first().cloned() } else { None };
    let expected = proto::PortClash { protocol: "tcp".into(), port: 80, reason: "taken".into() };
    assert_eq!(session.hear(told).await, expected);
    agent.clashes.send_replace(vec![]);
    let is_over = |up| if let Up::PortClashes(told) = up { Some(told.clashes.is_empty()) } else { None };
    assert!(session.hear(is_over).await, "an end is told too");

    agent.host_networks.send_replace(Some(vec!["10.0.0.0/8".parse().expect("a network")]));
    let networks = |up| if let Up::HostNetworks(told) = up { Some(told.networks) } else { None };
    assert_eq!(session.hear(networks).await, ["10.0.0.0/8"]);

    let assignments = proto::Assignments { full: false, set: vec![], removed_task_ids: vec!["t1".into()] };
    session.say(Down::Assignments(assignments)).await;
    let change = timeout(SOON, agent.assignments.recv()).await.expect("soon");
    assert_eq!(change, Some(AssignmentChange::Delta { set: vec![], removed: vec![TaskId::from("t1")] }));
    agent.shutdown.cancel();
}

#[tokio::test]
async fn statuses_outlive_a_session_until_they_are_stored() {
    let ca = Arc::new(make_ca());
    let mut manager = serve(&ca).await;
    let identity = join(manager.address, &ca.token(), "test").await.expect("the node joins");
    let agent = start_link(vec![manager.address], identity);
    let statuses = |up: Up| if let Up::Statuses(statuses) = up { Some(statuses.statuses) } else { None };
    let mut session = next_session(&mut manager).await;
    let running = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
    for task in ["a", "b"] {
        agent.statuses.send((TaskId::from(task), running.clone())).await.expect("the link takes statuses");
    }
    assert_eq!(session.hear(statuses).await.len(), 2, "statuses are batched");
    session.say(Down::StatusAck(proto::StatusAck { task_ids: vec!["a".into()], numbers: vec![] })).await;
    session.say(Down::Table(table(2, 0))).await;
    let mut view = agent.view.clone();
    view.wait_for(|view| view.generation == 2).await.expect("the acknowledgement was read before the table");
    drop(session);

    let mut session = next_session(&mut manager).await;
    let again: Vec<_> = session.hear(statuses).await.into_iter().map(|status| status.task_id).collect();
    assert_eq!(again, ["b"], "only what was not acknowledged comes again");
    agent.shutdown.cancel();
}

#[tokio::test]
async fn member_keys_come_before_what_stands_on_them() {
    let ca = Arc::new(make_ca());
    let mut manager = serve(&ca).await;
    let identity = join(manager.address, &ca.token(), "test").await.expect("the node joins");
    let mut agent = start_link(vec![manager.address], identity);
    let session = next_session(&mut manager).await;
    session
        .say(Down::MemberKeys(proto::MemberKeys {
            secrets: vec![vec![1; 32], vec![2; 32]],
            cookies_demanded: true,
        }))
        .await;
    session.say(Down::Table(table(5, 0))).await;
    wait_for_generation(&mut agent, 5).await;
    assert!(agent.view.borrow().member_keys.demand_cookies());
    let good: Vec<u8> = agent.keys.borrow().iter().map(|key| key.as_bytes()[0]).collect();
    assert_eq!(good, [1, 2], "what relay preambles are signed and checked with");
    session
        .say(Down::MemberKeys(proto::MemberKeys { secrets: vec![vec![2; 32]], cookies_demanded: true }))
        .await;
    agent.keys.wait_for(|keys| keys.iter().count() == 1).await.expect("the link lives");
    assert_eq!(agent.view.borrow().generation, 5, "the table stays");
}

#[tokio::test]
async fn a_new_description_is_told_by_a_new_session() {
    let ca = Arc::new(make_ca());
    let mut manager = serve(&ca).await;
    let identity = join(manager.address, &ca.token(), "test").await.expect("the node joins");
    let agent = start_link(vec![manager.address], identity);
    let first = next_session(&mut manager).await;
    agent.description.send_modify(|description| description.nano_cpus = 2_000_000_000);
    let second = next_session(&mut manager).await;
    let cpus = |session: &SessionOfTest| {
        let description: NodeDescription =
            serde_json::from_str(&session.hello.description_json).expect("a description");
        description.nano_cpus
    };
    assert_eq!((cpus(&first), cpus(&second)), (0, 2_000_000_000));
    agent.shutdown.cancel();
}

#[tokio::test]
async fn a_lost_delta_brings_the_whole_table_from_any_manager() {
    let ca = Arc::new(make_ca());
    let mut first = serve(&ca).await;
    let identity = join(first.address, &ca.token(), "test").await.expect("the node joins");
    let mut agent = start_link(vec![first.address], identity);
    let session = next_session(&mut first).await;
    session.say(Down::Table(table(5, 0))).await;
    wait_for_generation(&mut agent, 5).await;
    session.say(Down::Table(table(8, 7))).await;
    let session = next_session(&mut first).await;
    assert_eq!(session.hello.table_generation, 0, "nothing was applied, so the whole table is asked for");
    assert_eq!(agent.view.borrow().generation, 5, "the view stays as it was");
    agent.applied.send_replace(5);
    drop(session);
    let session = next_session(&mut first).await;
    assert_eq!(session.hello.table_generation, 5, "all of it is applied: changes are enough");
    agent.shutdown.cancel();
    first.server.abort();
}

#[tokio::test]
async fn a_node_that_its_cluster_does_not_know_any_more_gives_everything_up() {
    let ca = Arc::new(make_ca());
    let mut manager = serve(&ca).await;
    let identity = join(manager.address, &ca.token(), "test").await.expect("the node joins");
    let mut agent = start_link(vec![manager.address], identity);
    let session = next_session(&mut manager).await;
    session.say(Down::Table(table(5, 0))).await;
    wait_for_generation(&mut agent, 5).await;
    let refusal = || Err(tonic::Status::permission_denied("no member of this cluster"));
    let refused = tokio::time::Instant::now();
    session.down.send(refusal()).await.expect("the agent listens");
    let refusing = async {
        while let Some(session) = manager.sessions.recv().await {
            // The agent may have cancelled the call.
            drop(session.down.send(refusal()).await);
        }
    };
    let told = async {
        let change = agent.assignments.recv().await;
        assert_eq!(change, Some(AssignmentChange::Full(vec![])), "no task is this node's any more");
        agent.expelled.wait_for(|expelled| *expelled).await.expect("the link lives");
    };
    tokio::select! {
        () = refusing => panic!("the link ended"),
        told = timeout(SOON * 2, told) => told.expect("it gives up"),
    }
    assert!(refused.elapsed() >= EXPULSION_GRACE, "given up after {:?}", refused.elapsed());
    assert!(agent.view.borrow().nodes.is_empty(), "nothing is forwarded any more");

    // An operator brings the cluster's store back from a backup that knows the node.
    let session = next_session(&mut manager).await;
    session.say(Down::Table(table(5, 0))).await;
    agent.view.wait_for(|view| !view.nodes.is_empty()).await.expect("the link lives");
    assert!(!*agent.expelled.borrow(), "it is a member again");
    agent.shutdown.cancel();
}

#[tokio::test]
async fn the_death_of_a_task_is_told_to_every_manager() {
    let ca = Arc::new(make_ca());
    let (mut first, mut second) = (serve(&ca).await, serve(&ca).await);
    let identity = join(first.address, &ca.token(), "test").await.expect("the node joins");
    let agent = start_link(vec![first.address, second.address], identity);
    let (other, _session) = tokio::select! {
        session = next_session(&mut first) => (&mut second, session),
        session = next_session(&mut second) => (&mut first, session),
    };
    for (task, state) in [("stopped", TaskState::Shutdown), ("dead", TaskState::Failed)] {
        let status = TaskStatus { state, ..TaskStatus::default() };
        agent.statuses.send((TaskId::from(task), status)).await.expect("the link takes statuses");
    }
    let told = timeout(SOON, other.ends.recv()).await.expect("soon").expect("ends");
    let tasks: Vec<_> = told.statuses.iter().map(|status| status.task_id.as_str()).collect();
    assert_eq!(tasks, ["dead"], "one that was asked to stop has left the table before");
    agent.shutdown.cancel();
}

fn wanted(ask: &str, follow: bool, tail: i64, tasks: &[&str]) -> Down {
    let log = |task: &&str| proto::WantedLog { task_id: (*task).to_owned(), since: String::new(), tail };
    Down::LogsWanted(proto::LogsWanted {
        ask_id: ask.into(),
        logs: tasks.iter().map(log).collect(),
        stdout: true,
        stderr: true,
        follow,
        manager: String::new(),
    })
}

#[tokio::test]
async fn logs_are_told_to_the_end_with_what_is_missing() {
    let ca = Arc::new(make_ca());
    let mut manager = serve(&ca).await;
    let identity = join(manager.address, &ca.token(), "test").await.expect("the node joins");
    let agent = start_link(vec![manager.address], identity);
    let session = next_session(&mut manager).await;
    session.say(wanted("ask1", false, 3, &["a", "gone", "broken", "a"])).await;
    let (mut batches, _enough) = timeout(SOON, manager.logs.recv()).await.expect("soon").expect("logs");
    let (mut lines, mut ends, mut ask) = (Vec::new(), Vec::new(), String::new());
    while let Some(batch) = timeout(SOON, batches.message()).await.expect("soon").expect("a sound stream") {
        ask.push_str(&batch.ask_id);
        lines.extend(batch.lines.into_iter().map(|line| (line.task_id, line.data)));
        ends.extend(batch.ends.into_iter().map(|end| (end.task_id, end.error)));
    }
    assert_eq!(ask, "ask1");
    let line = |text: &str| ("a".to_owned(), text.as_bytes().to_vec());
    assert_eq!(lines, [line("0\n"), line("1\n"), line("2\n")]);
    ends.sort();
    let end = |task: &str, error: &str| (task.to_owned(), error.to_owned());
    let unanswered = "the Docker engine does not answer: it is off";
    assert_eq!(ends, [end("a", ""), end("broken", unanswered), end("gone", "")]);
    agent.shutdown.cancel();
}

#[tokio::test]
async fn a_reader_that_stops_reading_holds_up_nothing_and_ends_when_it_leaves() {
    let ca = Arc::new(make_ca());
    let mut manager = serve(&ca).await;
    let identity = join(manager.address, &ca.token(), "test").await.expect("the node joins");
    let mut agent = start_link(vec![manager.address], identity);
    let mut session = next_session(&mut manager).await;
    session.say(wanted("slow", true, -1, &["a"])).await;
    let (mut unread, enough) = timeout(SOON, manager.logs.recv()).await.expect("soon").expect("logs");
    // Nobody reads the endless log: heartbeats and tables go on.
    for generation in 1..=5 {
        session.hear(|up| matches!(up, Up::Heartbeat(_)).then_some(())).await;
        session.say(Down::Table(table(generation, generation - 1))).await;
        wait_for_generation(&mut agent, generation).await;
    }
    session.say(wanted("second", true, -1, &["b"])).await;
    let (mut second, _enough) = timeout(SOON, manager.logs.recv()).await.expect("soon").expect("logs");
    let seen = async {
        let mut seen = 0;
        while seen < 10_000 {
            seen += second.message().await.expect("a sound stream").expect("an open stream").lines.len();
        }
    };
    timeout(SOON, seen).await.expect("another reader's log flows beside the one that stands");
    drop(enough);
    let rest = async { while let Ok(Some(_)) = unread.message().await {} };
    timeout(SOON, rest).await.expect("the stream ends once the manager wants no more");
    agent.shutdown.cancel();
}

#[tokio::test]
async fn a_node_goes_to_a_manager_that_it_was_told_of_once_its_own_is_gone() {
    let ca = Arc::new(make_ca());
    let (mut first, mut second) = (serve(&ca).await, serve(&ca).await);
    let identity = join(first.address, &ca.token(), "test").await.expect("the node joins");
    let agent = start_link(vec![first.address], identity);
    let session = next_session(&mut first).await;
    assert!(session.hello.takes_managers, "managers tell only agents that take it");
    let addresses = vec![first.address.to_string(), second.address.to_string()];
    session.say(Down::Managers(proto::Managers { addresses, role: "worker".to_owned() })).await;
    session.say(Down::Table(table(1, 0))).await;
    let mut views = agent.view.clone();
    timeout(SOON, views.wait_for(|view| view.generation == 1)).await.expect("soon").expect("the link lives");
    first.server.abort();
    drop((session, first));
    next_session(&mut second).await;
    agent.shutdown.cancel();
}
