//! The control plane as a process, on a real etcd, with nodes played by the test over mutual TLS.

#![expect(clippy::unwrap_used, reason = "what can't be set up fails the test")]

mod admission;
mod autolock;
mod backup;
mod ca_rotation;
mod delivery;
mod emptied;
mod leaving;
mod logs;
mod own_etcd;
mod propagation;
mod remote_api;
mod renewal;
mod supervised;
mod support;
mod worker_rights;

use std::time::{Duration, Instant};

use hyper::Method;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::node::{Liveness, NodeState};
use mesh_state::proto::BackendState;
use mesh_state::store::Store as _;
use mesh_state::task::TaskState;
use mesh_state::{codec, keys};
use serde_json::json;
use support::control_process::{Manager, ca_pem};
use support::eventually;
use support::node::{Session, join};
use tonic::Code;

/// A service of one replica that publishes a port.
fn service(name: &str, published: u16) -> serde_json::Value {
    json!({
        "Name": name, "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "nginx:latest"},
            "RestartPolicy": {"Condition": "any", "Delay": 100_000_000}
        },
        "Mode": {"Replicated": {"Replicas": 1}},
        "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": published}]}
    })
}

async fn create(manager: &Manager, spec: &serde_json::Value) -> String {
    let (status, answer) = manager.docker().call(Method::POST, "/services/create", Some(spec)).await.unwrap();
    assert_eq!(status, 201, "answer to create: {answer}");
    answer["ID"].as_str().unwrap().to_owned()
}

/// The state that `docker node ls` shows of the only node.
async fn node_state(manager: &Manager) -> Option<String> {
    let (_, nodes) = manager.docker().get("/nodes").await.ok()?;
    nodes[0]["Status"]["State"].as_str().map(str::to_owned)
}

/// Reports a task's states up to running.
async fn run_task(session: &Session, task: &str, address: &str) {
    for state in [TaskState::Accepted, TaskState::Preparing, TaskState::Starting] {
        session.report(task, state, None).await;
    }
    session.report(task, TaskState::Running, Some(address)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_runs_its_task_and_sees_the_mesh() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let ca = ca_pem(&etcd).await;

    let refused =
        join(manager.nodes, "SWMTKN-1-x-y", &ca, "node-1").await.err().expect("a wrong token was taken");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let member = join(manager.nodes, &manager.join_token(), &ca, "node-1").await.unwrap();
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    assert_eq!(session.welcome.node_id, member.id);
    assert_eq!(session.welcome.relay_key.len(), 32, "bytes of the relay key");
    let subnet: ipnet::Ipv4Net = session.welcome.subnet.parse().unwrap();
    assert_eq!(subnet.prefix_len(), 24, "the node's subnet {subnet}");
    eventually("a ready node", async || node_state(&manager).await.filter(|state| state == "ready")).await;

    let id = create(&manager, &service("web", 8080)).await;
    let task = session
        .until("the task", |seen| seen.assignments.last().filter(|one| one.service_name == "web").cloned())
        .await
        .unwrap();
    assert_eq!((task.name.as_str(), task.task.service_id.as_str()), ("web.1", id.as_str()));
    let task = task.task.id.to_string();

    let address = subnet.hosts().nth(1).unwrap().to_string();
    let reported = Instant::now();
    run_task(&session, &task, &address).await;
    let backend = session.until("the backend", |seen| seen.backend_of(&task)).await.unwrap();
    assert!(reported.elapsed() < Duration::from_secs(2), "the backend came after {:?}", reported.elapsed());
    assert_eq!((backend.state(), backend.address.as_str()), (BackendState::Active, address.as_str()));
    assert_eq!((backend.published, backend.target), (8080, 80));
    session
        .until("the acknowledgement", |seen| seen.acknowledged.contains(&task).then_some(()))
        .await
        .unwrap();

    // A new policy changes the table and nothing else.
    let mut spec = service("web", 8080);
    spec["Labels"] = json!({"mesh.lb.policy": "least-connections"});
    let (_, found) = manager.docker().get("/services/web").await.unwrap();
    let update = format!("/services/{id}/update?version={}", found["Version"]["Index"]);
    let (status, answer) = manager.docker().call(Method::POST, &update, Some(&spec)).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let policy = |seen: &Session| {
        seen.tables.iter().flat_map(|table| &table.services).next_back().map(|one| one.policy.clone())
    };
    session
        .until("the policy", |seen| policy(seen).filter(|policy| policy == "least-connections"))
        .await
        .unwrap();

    // A dead task leaves the table, and another takes its slot.
    session.report(&task, TaskState::Failed, None).await;
    let backend_id = backend.id;
    session
        .until("the backend's removal", |seen| {
            seen.tables.iter().any(|table| table.removed_backend_ids.contains(&backend_id)).then_some(())
        })
        .await
        .unwrap();
    let replaced =
        |seen: &Session| seen.assignments.last().filter(|one| one.task.id.as_str() != task).cloned();
    let next = session.until("the replacement", replaced).await.unwrap();
    assert_eq!(next.name, "web.1");

    let (status, answer) =
        manager.docker().call(Method::DELETE, &format!("/nodes/{}?force=1", member.id), None).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let cut = session.until("nothing: the node was removed", |_| None::<()>).await.unwrap_err();
    assert_eq!(cut.code(), Code::PermissionDenied, "{cut}");
    let refused = Session::open(manager.nodes, &member, 0).await.err().expect("a removed node had a session");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_silent_while_it_says_nothing_and_ready_when_it_speaks() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let member = join(manager.nodes, &manager.join_token(), &ca_pem(&etcd).await, "node-1").await.unwrap();
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    create(&manager, &service("web", 8080)).await;
    let task =
        session.until("a task", |seen| seen.assignments.last().cloned()).await.unwrap().task.id.to_string();
    run_task(&session, &task, "10.128.0.2").await;
    let state = |wanted: BackendState| {
        let task = task.clone();
        move |seen: &Session| seen.backend_of(&task).filter(|backend| backend.state() == wanted).map(drop)
    };
    session.until("an active backend", state(BackendState::Active)).await.unwrap();

    let silent_at = Instant::now();
    session.fall_silent();
    session.until("a silent backend", state(BackendState::Silent)).await.unwrap();
    assert!(silent_at.elapsed() < Duration::from_secs(4), "out of selection after {:?}", silent_at.elapsed());
    session.report(&task, TaskState::Running, Some("10.128.0.2")).await;
    session.until("an active backend again", state(BackendState::Active)).await.unwrap();

    // A broken stream makes the node silent at once; a new session makes it ready again.
    drop(session);
    eventually("a silent node", async || {
        let log = manager.log();
        log.contains("its session ended").then_some(())
    })
    .await;
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    session.until("an active backend in the new session", state(BackendState::Active)).await.unwrap();
    let whole = &session.tables[0];
    assert_eq!((whole.nodes.len(), whole.services.len()), (1, 1), "the first table is whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_etcd_keeps_the_nodes_and_loses_no_report() {
    let mut etcd = EtcdProcess::start().await.unwrap();
    let mut manager = Manager::start("m1", &etcd, None).await;
    let member = join(manager.nodes, &manager.join_token(), &ca_pem(&etcd).await, "node-1").await.unwrap();
    let mut session = Session::open(manager.nodes, &member, 0).await.unwrap();
    create(&manager, &service("web", 8080)).await;
    let task =
        session.until("a task", |seen| seen.assignments.last().cloned()).await.unwrap().task.id.to_string();

    etcd.stop();
    eventually("an API that says so", async || {
        let (_, info) = manager.docker().get("/info").await.ok()?;
        let said = info["Swarm"]["Error"].as_str().unwrap_or_default();
        said.contains("The swarm does not have a leader").then_some(())
    })
    .await;
    run_task(&session, &task, "10.128.0.2").await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(
        manager.admin("healthz").await.as_deref(),
        Some("ok\n"),
        "the manager lives through the outage"
    );

    etcd.resume().await.unwrap();
    session.until("the backend", |seen| seen.backend_of(&task)).await.unwrap();
    session
        .until("the acknowledgement", |seen| seen.acknowledged.contains(&task).then_some(()))
        .await
        .unwrap();
    eventually("a leader again", async || {
        let metrics = manager.admin("metrics").await?;
        metrics.contains("\nmesh_leader 1\n").then_some(())
    })
    .await;
    create(&manager, &service("later", 8081)).await;
    session
        .until("a task after the outage", |seen| {
            seen.assignments.iter().find(|one| one.service_name == "later").map(drop)
        })
        .await
        .unwrap();
    assert!(manager.child.try_wait().unwrap().is_none(), "the manager ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_manager_takes_over() {
    let etcd = EtcdProcess::start().await.unwrap();
    let mut first = Manager::start("m1", &etcd, None).await;
    let mut keyless = Manager::spawn("m0", &etcd, None);
    let ended =
        eventually("a manager without the key to end", async || keyless.child.try_wait().unwrap()).await;
    assert!(!ended.success(), "a manager without the key went on");
    assert!(keyless.log().contains("copy the key file"), "it doesn't say what to do: {}", keyless.log());

    let second = Manager::start("m2", &etcd, Some(&first)).await;
    let member = join(first.nodes, &first.join_token(), &ca_pem(&etcd).await, "node-1").await.unwrap();
    let mut session = Session::open(first.nodes, &member, 0).await.unwrap();
    session.until("a table", |seen| seen.tables.last().map(drop)).await.unwrap();
    let leader = async |manager: &Manager| {
        let metrics = manager.admin("metrics").await?;
        metrics.contains("\nmesh_leader 1\n").then_some(())
    };
    eventually("the first to lead", async || leader(&first).await).await;

    first.kill();
    let had = session.tables.last().unwrap().generation;
    let mut session = Session::open(second.nodes, &member, had).await.unwrap();
    session.until("a table", |seen| seen.tables.last().map(drop)).await.unwrap();
    let generation = session.tables[0].generation;
    assert!(generation >= had, "the second manager sent the node back from {had} to {generation}");
    eventually("the second to lead", async || leader(&second).await).await;
    create(&second, &service("web", 8080)).await;
    session.until("a task", |seen| seen.assignments.last().cloned()).await.unwrap();
    eventually("a ready node", async || node_state(&second).await.filter(|state| state == "ready")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_died_while_its_manager_was_away_is_noticed() {
    let etcd = EtcdProcess::start().await.unwrap();
    let mut manager = Manager::start("m1", &etcd, None).await;
    let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
    let gone = join(manager.nodes, &token, &ca, "node-1").await.unwrap();
    let stays = join(manager.nodes, &token, &ca, "node-2").await.unwrap();
    let sessions = [
        Session::open(manager.nodes, &gone, 0).await.unwrap(),
        Session::open(manager.nodes, &stays, 0).await.unwrap(),
    ];
    let store = etcd.store().await.unwrap();
    let state = async |id: &str| {
        let item = store.get(&keys::liveness(&id.into())).await.unwrap()?;
        Some(codec::decode::<Liveness>(&item.value).unwrap().state)
    };
    for node in [&gone, &stays] {
        eventually("a ready node", async || state(&node.id).await.filter(|now| *now == NodeState::Ready))
            .await;
    }
    manager.kill();
    drop(sessions);
    manager.resume().await;
    let session = Session::open(manager.nodes, &stays, 0).await.unwrap();
    eventually("a silent node", async || state(&gone.id).await.filter(|now| *now == NodeState::Silent)).await;
    assert_eq!(state(&stays.id).await, Some(NodeState::Ready), "the node that came back");
    drop(session);
}

/// Prometheus' own checker accepts a real scrape.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_are_sound() {
    use std::io::Write as _;
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let member = join(manager.nodes, &manager.join_token(), &ca_pem(&etcd).await, "node-1").await.unwrap();
    let _session = Session::open(manager.nodes, &member, 0).await.unwrap();
    create(&manager, &service("web", 8080)).await;
    let metrics = eventually("the tasks' gauges", async || {
        let metrics = manager.admin("metrics").await?;
        metrics.contains("mesh_service_tasks{service=\"web\",state=\"assigned\"} 1").then_some(metrics)
    })
    .await;
    assert!(metrics.contains("route=\"/services/create\""), "the API's requests are not counted:\n{metrics}");
    let targets = manager.admin("prometheus-targets").await.unwrap();
    let own = format!("\"targets\":[\"{}\"]", manager.metrics);
    assert!(targets.contains(&own), "a manager does not name itself as a target: {targets}");
    let mut promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("start promtool: install Debian's prometheus package");
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "promtool: {}", String::from_utf8_lossy(&output.stderr));
}
