//! Tests of the worker on an engine in memory: what must hold while the engine or the link to
//! control hangs.

mod engine;
mod networks;

use async_trait::async_trait;
use mesh_state::task::{Slot, Task};

use super::*;
use crate::task::container::Phase;
use crate::task::engine_watch::watch_engine;
use crate::task::network::{Draining, RunningTask, StartingTask, TaskNetworkError};
use engine::Engine;

struct NoNetwork;

#[async_trait]
impl TaskNetwork for NoNetwork {
    async fn starting(&self, _task: &StartingTask) -> Result<(), TaskNetworkError> {
        Ok(())
    }

    async fn started(&self, _task: &RunningTask) -> Result<(), TaskNetworkError> {
        Ok(())
    }

    async fn flows_left(&self, _task: &Draining) -> Result<u64, TaskNetworkError> {
        Ok(0)
    }

    async fn stopped(&self, _task_id: &TaskId) {}
}

/// A task that is to run here.
pub(in crate::task) fn assignment(id: &str) -> Assignment {
    Assignment {
        task: Task {
            id: id.into(),
            service_id: "s1".into(),
            slot: Slot::Number(1),
            spec_version: 1,
            node_id: Some("n1".into()),
            desired_state: TaskState::Running,
            endpoints: Vec::new(),
            attachments: Vec::new(),
            created_at: mesh_state::Timestamp::default(),
            job_iteration: None,
            generic_resources: Vec::new(),
            start_after: None,
            shutdown_at: None,
            leader_status: TaskStatus::default(),
        },
        name: "web.1".to_owned(),
        service_name: "web".to_owned(),
        service_labels: mesh_state::spec::Labels::default(),
        spec: serde_json::from_value(serde_json::json!({"ContainerSpec": {"Image": "x"}}))
            .expect("a template"),
        host_ports: Vec::new(),
        drain: mesh_state::task::Drain::default(),
        registry_auth: None,
        networks: Vec::new(),
    }
}

struct Bench {
    engine: Arc<Engine>,
    assignments: mpsc::Sender<AssignmentChange>,
    statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    shutdown: CancellationToken,
    worker: tokio::task::JoinHandle<()>,
    _bridge: watch::Sender<BridgePlan>,
}

impl Bench {
    fn start(engine: &Arc<Engine>, directory: &std::path::Path) -> Self {
        let (assignments, assigned) = mpsc::channel(1);
        let (told, statuses) = mpsc::channel(1);
        let (bridge_in, bridge) = watch::channel(BridgePlan { subnet: None, with_ipv6: false, mtu: 1450 });
        let shutdown = CancellationToken::new();
        let node = NodeIdentity {
            id: "n1".into(),
            hostname: "alpha".to_owned(),
            architecture: "x86_64".to_owned(),
            os: "linux".to_owned(),
        };
        let cache = TaskCache::open(directory.to_owned()).expect("the cache opens");
        let runtime = Arc::clone(engine) as Arc<dyn Runtime>;
        let dependencies = Dependencies::new(directory.join("files"));
        let networks = Arc::new(Networks::new(Arc::clone(&runtime), bridge.clone()));
        let deps = WorkerDeps {
            runtime,
            networks,
            network: Arc::new(NoNetwork),
            local: Arc::default(),
            node,
            dependencies,
            bridge,
            unfit: watch::Sender::new(None),
            cache,
        };
        let worker = tokio::spawn(run(deps, assigned, told, shutdown.clone()));
        Self { engine: Arc::clone(engine), assignments, statuses, shutdown, worker, _bridge: bridge_in }
    }

    async fn assign(&self, change: AssignmentChange) {
        self.assignments.send(change).await.expect("the worker lives");
    }

    async fn until(&mut self, task: &str, state: TaskState) -> TaskStatus {
        loop {
            let told = tokio::time::timeout(Duration::from_mins(1), self.statuses.recv()).await;
            let (id, status) =
                told.unwrap_or_else(|_| panic!("{task} never reached {state:?}")).expect("the worker lives");
            if id.as_str() == task && status.state == state {
                return status;
            }
        }
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.worker.await.expect("the worker ends well");
    }
}

#[tokio::test]
async fn an_engine_that_is_away_changes_no_status() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    let mut bench = Bench::start(&engine, directory.path());
    bench.assign(AssignmentChange::Full(vec![assignment("t1")])).await;
    bench.until("t1", TaskState::Running).await;

    bench.engine.set_away(true);
    bench.assign(AssignmentChange::Delta { set: vec![assignment("t1")], removed: Vec::new() }).await;
    let told = tokio::time::timeout(Duration::from_millis(500), bench.statuses.recv()).await;
    assert!(told.is_err(), "nothing is known, so nothing is told; saw {told:?}");

    bench.engine.set_away(false);
    bench.engine.set_phase("web.1.t1", Phase::Exited);
    bench.until("t1", TaskState::Complete).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_is_away_after_a_few_failures_and_back_with_its_first_answer() {
    let engine = Arc::new(Engine::default());
    let (away_in, mut away) = watch::channel(false);
    let watching = tokio::spawn(watch_engine(Arc::clone(&engine) as Arc<dyn Runtime>, away_in));
    engine.set_away(true);
    let begun = tokio::time::Instant::now();
    away.wait_for(|away| *away).await.expect("it is watched");
    assert!(begun.elapsed() >= Duration::from_secs(2), "one failure was enough");
    engine.set_away(false);
    away.wait_for(|away| !*away).await.expect("it is watched");
    drop(away);
    engine.set_away(true);
    watching.await.expect("the watch ends with its last listener");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_takes_calls_and_answers_none_is_away() {
    let engine = Arc::new(Engine::default());
    let (away_in, mut away) = watch::channel(false);
    let _watching = tokio::spawn(watch_engine(Arc::clone(&engine) as Arc<dyn Runtime>, away_in));
    let hang = |hangs| engine.with(|state| state.hangs = hangs).expect("the engine is there");
    hang(true);
    let begun = tokio::time::Instant::now();
    away.wait_for(|away| *away).await.expect("it is watched");
    assert!(begun.elapsed() <= Duration::from_secs(15), "noticed after {:?}", begun.elapsed());
    hang(false);
    away.wait_for(|away| !*away).await.expect("it is watched");
}

#[tokio::test]
async fn a_tag_is_pulled_before_each_container_and_a_digest_only_if_it_is_missing() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    engine.with(|state| state.has_image = true).expect("the engine is there");
    let pinned = format!("x@sha256:{}", "0".repeat(64));
    let mut bench = Bench::start(&engine, directory.path());
    for (number, image) in ["x:1", "x:1", &pinned, "away.example/x:1"].into_iter().enumerate() {
        let mut next = assignment(&format!("t{number}"));
        next.spec.container_spec.as_mut().expect("a container").image = image.to_owned();
        bench.assign(AssignmentChange::Delta { set: vec![next], removed: Vec::new() }).await;
        bench.until(&format!("t{number}"), TaskState::Running).await;
    }
    let pulls = engine.with(|state| state.pulls.clone()).expect("the engine is there");
    assert_eq!(pulls, ["x:1", "x:1", "away.example/x:1"], "the last one's local copy serves");
    bench.end().await;
}

#[tokio::test]
async fn tasks_go_on_while_nobody_takes_their_statuses() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    let mut bench = Bench::start(&engine, directory.path());
    let set: Vec<Assignment> = (0..50).map(|number| assignment(&format!("t{number}"))).collect();
    bench.assign(AssignmentChange::Full(set)).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while engine.starts() < 50 {
        assert!(tokio::time::Instant::now() < deadline, "only {} of 50 were started", engine.starts());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.until("t49", TaskState::Running).await;
    bench.end().await;
}

#[tokio::test]
async fn a_new_worker_starts_nothing_twice_and_ends_only_what_control_left_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    let mut bench = Bench::start(&engine, directory.path());
    bench.assign(AssignmentChange::Full(vec![assignment("t1"), assignment("t2")])).await;
    let mut running = BTreeSet::new();
    while running.len() < 2 {
        let (id, status) = bench.statuses.recv().await.expect("the worker lives");
        if status.state == TaskState::Running {
            running.insert(id);
        }
    }
    bench.end().await;

    let mut bench = Bench::start(&engine, directory.path());
    bench.assign(AssignmentChange::Full(vec![assignment("t1")])).await;
    bench.until("t1", TaskState::Running).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while engine.with(|state| state.containers.contains_key("web.1.t2")).expect("the engine is there") {
        assert!(tokio::time::Instant::now() < deadline, "t2 was not removed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(engine.starts(), 2, "nothing is started twice");
    bench.end().await;
}

#[tokio::test]
async fn a_container_that_is_there_already_is_taken_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    let mut bench = Bench::start(&engine, &directory.path().join("first"));
    bench.assign(AssignmentChange::Full(vec![assignment("t1")])).await;
    bench.until("t1", TaskState::Running).await;
    bench.end().await;

    // An agent that has forgotten everything.
    let mut bench = Bench::start(&engine, &directory.path().join("second"));
    bench.assign(AssignmentChange::Full(vec![assignment("t1")])).await;
    bench.until("t1", TaskState::Running).await;
    assert_eq!(engine.starts(), 1, "it is not started again");
    bench.end().await;

    let mut ending = assignment("t1");
    ending.task.desired_state = TaskState::Shutdown;
    let mut bench = Bench::start(&engine, &directory.path().join("third"));
    bench.assign(AssignmentChange::Full(vec![ending])).await;
    bench.until("t1", TaskState::Shutdown).await;
    let phase = engine.with(|state| state.containers["web.1.t1"].1.phase).expect("the engine is there");
    assert_eq!(phase, Phase::Exited, "what is to end was looked for first");
    bench.end().await;
}
