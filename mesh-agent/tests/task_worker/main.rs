//! The task worker on a real engine: a task's life, a killed container, an adopted one, and
//! containers that no task owns.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

#[path = "../engine/mod.rs"]
mod engine;
mod networks;
mod secrets;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Engine, eventually, stderr, stdout};
use mesh_agent::control_link::AssignmentChange;
use mesh_agent::task::bridge::BridgePlan;
use mesh_agent::task::cache::TaskCache;
use mesh_agent::task::container_spec::NodeIdentity;
use mesh_agent::task::dependencies::Dependencies;
use mesh_agent::task::docker::DockerEngine;
use mesh_agent::task::local::LocalTasks;
use mesh_agent::task::network::{Draining, RunningTask, StartingTask, TaskNetwork, TaskNetworkError};
use mesh_agent::task::networks::keeper::Networks;
use mesh_agent::task::runtime::Runtime;
use mesh_agent::task::worker::{self, WorkerDeps};
use mesh_state::ids::TaskId;
use mesh_state::task::{Assignment, Slot, Task, TaskState, TaskStatus};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Records which tasks were connected.
#[derive(Default)]
struct Links {
    log: Mutex<Vec<String>>,
}

#[async_trait]
impl TaskNetwork for Links {
    async fn starting(&self, _task: &StartingTask) -> Result<(), TaskNetworkError> {
        Ok(())
    }

    async fn started(&self, task: &RunningTask) -> Result<(), TaskNetworkError> {
        let address = task.address.map(|address| address.to_string()).unwrap_or_default();
        self.log.lock().unwrap().push(format!("started {} {address}", task.task_id));
        Ok(())
    }

    async fn flows_left(&self, _task: &Draining) -> Result<u64, TaskNetworkError> {
        Ok(0)
    }

    async fn stopped(&self, task_id: &TaskId) {
        self.log.lock().unwrap().push(format!("stopped {task_id}"));
    }
}

/// An agent's worker, until it is ended.
struct Agent {
    runtime: tokio::runtime::Runtime,
    assignments: mpsc::Sender<AssignmentChange>,
    statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    seen: Vec<(String, TaskStatus)>,
    links: Arc<Links>,
    local: Arc<LocalTasks>,
    shutdown: CancellationToken,
    /// On a tmpfs that the engine sees as well.
    files: PathBuf,
    _bridge: watch::Sender<BridgePlan>,
}

impl Agent {
    fn start(engine: &Engine, cache: PathBuf) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (assignments, assigned) = mpsc::channel(8);
        let (told, statuses) = mpsc::channel(8);
        let plan = BridgePlan { subnet: Some("10.128.9.0/24".parse().unwrap()), with_ipv6: false, mtu: 1450 };
        let (bridge_in, bridge) = watch::channel(plan);
        let links = Arc::new(Links::default());
        let local = Arc::new(LocalTasks::default());
        let shutdown = CancellationToken::new();
        let files = engine.memory();
        let docker: Arc<dyn Runtime> = Arc::new(DockerEngine::new(engine.socket()));
        let networks = Arc::new(Networks::new(Arc::clone(&docker), bridge.clone()));
        let deps = WorkerDeps {
            runtime: docker,
            networks,
            network: Arc::clone(&links) as Arc<dyn TaskNetwork>,
            local: Arc::clone(&local),
            node: NodeIdentity {
                id: "node1".into(),
                hostname: "alpha".to_owned(),
                architecture: "x86_64".to_owned(),
                os: "linux".to_owned(),
            },
            dependencies: Dependencies::new(files.clone()),
            bridge,
            unfit: watch::Sender::new(None),
            cache: TaskCache::open(cache).unwrap(),
        };
        runtime.spawn(worker::run(deps, assigned, told, shutdown.clone()));
        Self {
            runtime,
            assignments,
            statuses,
            seen: Vec::new(),
            links,
            local,
            shutdown,
            files,
            _bridge: bridge_in,
        }
    }

    fn assign(&self, change: AssignmentChange) {
        self.assignments.blocking_send(change).unwrap();
    }

    /// The status with which `task` reaches `state`.
    fn until(&mut self, task: &str, state: TaskState) -> TaskStatus {
        let wait = async {
            loop {
                let (id, status) = self.statuses.recv().await.expect("the worker lives");
                self.seen.push((id.to_string(), status.clone()));
                if id.as_str() == task && status.state == state {
                    return status;
                }
            }
        };
        let waited =
            self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(40), wait).await });
        waited.unwrap_or_else(|_| panic!("{task} did not reach {state:?}; seen: {:?}", self.seen))
    }

    /// The status in which `task` says that it waits.
    fn until_err(&mut self, task: &str, err: &str) -> TaskStatus {
        let wait = async {
            loop {
                let (id, status) = self.statuses.recv().await.expect("the worker lives");
                if id.as_str() == task && status.err == err {
                    return status;
                }
                self.seen.push((id.to_string(), status));
            }
        };
        let waited =
            self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(40), wait).await });
        waited.unwrap_or_else(|_| panic!("{task} did not say {err:?}; seen: {:?}", self.seen))
    }

    fn links(&self) -> Vec<String> {
        self.links.log.lock().unwrap().clone()
    }

    /// The published addresses of this node's tasks.
    fn local_tasks(&self) -> Vec<(String, String)> {
        let local = self.local.subscribe();
        let tasks = local.borrow();
        tasks.iter().map(|(address, task)| (address.to_string(), task.to_string())).collect()
    }

    /// Ends it like a killed agent: nothing is cleaned up.
    fn kill(self) {
        self.runtime.shutdown_background();
    }

    fn stop(self) {
        self.shutdown.cancel();
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

fn assignment(id: &str, spec: &serde_json::Value, desired_state: TaskState) -> Assignment {
    let template = serde_json::json!({ "ContainerSpec": spec });
    Assignment {
        task: Task {
            id: id.into(),
            service_id: "service1".into(),
            slot: Slot::Number(1),
            spec_version: 1,
            node_id: Some("node1".into()),
            desired_state,
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
        spec: serde_json::from_value(template).unwrap(),
        host_ports: Vec::new(),
        drain: mesh_state::task::Drain::default(),
        registry_auth: None,
        networks: Vec::new(),
    }
}

fn sleeper() -> serde_json::Value {
    // `wait` is interruptible, so the trap runs at once: the stop signal must reach the task before
    // the kill.
    serde_json::json!({
        "Image": "busybox", "Command": ["sh", "-c", "trap 'exit 0' TERM; sleep 600 & wait"],
        "Env": ["SLOT={{.Task.Slot}}"], "Healthcheck": {"Test": ["NONE"]},
    })
}

fn set(assignment: Assignment) -> AssignmentChange {
    AssignmentChange::Delta { set: vec![assignment], removed: Vec::new() }
}

fn state_of(engine: &Engine, container: &str) -> String {
    let format = "{{.Id}} {{.State.Status}} {{.State.StartedAt}}";
    stdout(&engine.docker(&["inspect", "-f", format, container]))
}

#[test]
fn a_task_runs_is_killed_and_is_told_of() {
    let Some(engine) = engine::start() else { return };
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    agent.assign(AssignmentChange::Full(vec![assignment("t1", &sleeper(), TaskState::Ready)]));
    let ready = agent.until("t1", TaskState::Ready);
    assert_eq!(ready.message, "prepared");
    assert!(state_of(&engine, "web.1.t1").contains("created"), "{}", state_of(&engine, "web.1.t1"));

    agent.assign(set(assignment("t1", &sleeper(), TaskState::Running)));
    let running = agent.until("t1", TaskState::Running);
    assert_eq!((running.message.as_str(), running.err.as_str()), ("started", ""));
    let container = running.container.expect("a container");
    let address = container.address.expect("an address on the network mesh").to_string();
    assert!(address.starts_with("10.128.9."), "address is {address}");
    assert_eq!(agent.links(), [format!("started t1 {address}")], "connected before it was told running");
    assert_eq!(agent.local_tasks(), [(address, "t1".to_owned())], "the name server knows who asks");
    let network = stdout(&engine.docker(&["network", "inspect", "-f", "{{json .Options}}", "mesh"]));
    assert!(network.contains("mesh0") && network.contains("1450"), "network mesh has {network}");
    let env = stdout(&engine.docker(&["exec", "web.1.t1", "env"]));
    assert!(env.contains("SLOT=1"), "environment is {env}");
    let listed = stdout(&engine.docker(&["ps", "--filter", "label=com.docker.swarm.service.name=web", "-q"]));
    assert!(
        container.container_id.starts_with(&listed) && !listed.is_empty(),
        "docker ps by label shows {listed:?}"
    );

    let killed = std::time::Instant::now();
    engine.docker(&["rm", "-f", "web.1.t1"]);
    let failed = agent.until("t1", TaskState::Failed);
    assert_eq!(failed.err, "task: non-zero exit (137)");
    assert!(killed.elapsed() < Duration::from_secs(2), "told after {:?}", killed.elapsed());
    assert_eq!(agent.links().last().map(String::as_str), Some("stopped t1"));
    assert_eq!(agent.local_tasks(), []);
    agent.stop();
}

#[test]
fn desired_shutdown_stops_gracefully_and_remove_leaves_nothing() {
    let Some(engine) = engine::start() else { return };
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    agent.assign(AssignmentChange::Full(vec![assignment("t1", &sleeper(), TaskState::Running)]));
    agent.until("t1", TaskState::Running);
    agent.assign(set(assignment("t1", &sleeper(), TaskState::Shutdown)));
    let shutdown = agent.until("t1", TaskState::Shutdown);
    assert_eq!(shutdown.message, "shutdown");
    assert_eq!(shutdown.container.map(|container| container.exit_code), Some(0), "the stop signal was seen");
    assert!(state_of(&engine, "web.1.t1").contains("exited"), "a stopped container is kept");

    agent.assign(set(assignment("t1", &sleeper(), TaskState::Remove)));
    eventually("the container is removed", || !engine.docker(&["inspect", "web.1.t1"]).status.success());
    let cached = || std::fs::read_dir(engine.path("tasks")).unwrap().count();
    eventually("the cached task is forgotten", || cached() == 0);
    agent.stop();
}

#[test]
fn a_restarted_agent_adopts_and_ends_only_what_control_left_out() {
    let Some(mut engine) = engine::start() else { return };
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    let tasks = ["t1", "t2"].map(|id| assignment(id, &sleeper(), TaskState::Running));
    agent.assign(AssignmentChange::Full(tasks.to_vec()));
    agent.until("t1", TaskState::Running);
    if !agent.seen.iter().any(|(id, status)| id == "t2" && status.state == TaskState::Running) {
        agent.until("t2", TaskState::Running);
    }
    let before = state_of(&engine, "web.1.t1");
    let lost = Agent::start(&engine, engine.path("other"));
    lost.kill();
    agent.kill();

    // Without control the agent continues, from its cache.
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    eventually("both are connected again", || agent.links().len() == 2);
    assert_eq!(
        state_of(&engine, "web.1.t1"),
        before,
        "an adopted container is the same and was not restarted"
    );
    engine.docker(&["kill", "web.1.t2"]);
    agent.until("t2", TaskState::Failed);

    // Control's full list lacks t2: t2 is removed, t1 stays and is reported again.
    agent.assign(AssignmentChange::Full(vec![tasks[0].clone()]));
    let told = agent.until("t1", TaskState::Running);
    assert!(told.container.is_some(), "a status that is told again has its container");
    eventually("t2 is gone", || !engine.docker(&["inspect", "web.1.t2"]).status.success());
    assert_eq!(state_of(&engine, "web.1.t1"), before, "t1 was left alone");
    agent.kill();

    // The cache is lost: the container is found by its label, and adopted when control names it.
    let mut agent = Agent::start(&engine, engine.path("fresh"));
    agent.assign(AssignmentChange::Full(vec![tasks[0].clone()]));
    agent.until("t1", TaskState::Running);
    assert_eq!(state_of(&engine, "web.1.t1"), before, "adopted by label");

    // The engine stops and comes back: its containers ended with it, and that is reported then, not
    // guessed while it was away.
    engine.halt();
    std::thread::sleep(Duration::from_millis(500));
    engine.boot();
    let ended = agent.until("t1", TaskState::Complete);
    assert_eq!(ended.message, "finished", "dockerd's own end let the container exit with 0");
    agent.assign(AssignmentChange::Full(Vec::new()));
    eventually("nothing is left", || stdout(&engine.docker(&["ps", "-aq"])).is_empty());
    agent.stop();
}

#[test]
fn failures_are_told_in_swarms_words() {
    let Some(engine) = engine::start() else { return };
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    let spec = |fields: serde_json::Value| assignment("t", &fields, TaskState::Running);
    let mut run = |id: &str, fields: serde_json::Value, state| {
        let mut assignment = spec(fields);
        assignment.task.id = id.into();
        agent.assign(set(assignment));
        agent.until(id, state).err
    };
    let missing = run("a", serde_json::json!({"Image": "127.0.0.1:1/absent:1"}), TaskState::Rejected);
    assert_eq!(missing, "No such image: 127.0.0.1:1/absent:1");
    let broken = run("b", serde_json::json!({"Image": "busybox", "Command": ["/absent"]}), TaskState::Failed);
    assert!(broken.starts_with("starting container failed: "), "error is {broken}");
    let secret = run(
        "c",
        serde_json::json!({"Image": "busybox", "Secrets": [{"SecretID": "s"}]}),
        TaskState::Rejected,
    );
    assert!(secret.contains("has no target file"), "error is {secret}");
    let exit = run(
        "d",
        serde_json::json!({"Image": "busybox", "Command": ["sh", "-c", "exit 3"]}),
        TaskState::Failed,
    );
    assert_eq!(exit, "task: non-zero exit (3)");
    let complete =
        run("e", serde_json::json!({"Image": "busybox", "Command": ["true"]}), TaskState::Complete);
    assert_eq!(complete, "");
    let sick = serde_json::json!({
        "Image": "busybox", "Command": ["sleep", "600"], "StopGracePeriod": 0,
        "Healthcheck": {"Test": ["CMD", "test", "!", "-e", "/tmp/sick"], "Interval": 300_000_000, "Retries": 1, "Timeout": 5_000_000_000_i64},
    });
    let mut assignment = spec(sick);
    assignment.task.id = "f".into();
    agent.assign(set(assignment));
    agent.until("f", TaskState::Running);
    let health = stdout(&engine.docker(&["inspect", "-f", "{{.State.Health.Status}}", "web.1.f"]));
    assert_eq!(health, "healthy", "running is told only when healthy");
    let made = engine.docker(&["exec", "web.1.f", "sh", "-c", "echo > /tmp/sick"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let unhealthy = agent.until("f", TaskState::Failed).err;
    assert_eq!(unhealthy, "task: non-zero exit (137): dockerexec: unhealthy container");
    agent.stop();
}

#[test]
fn the_engine_describes_its_node() {
    let Some(engine) = engine::start() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let facts = runtime.block_on(DockerEngine::new(engine.socket()).engine()).unwrap();
    let description = mesh_agent::task::description::describe("node-1", &facts);
    assert_eq!(
        (description.os.as_str(), description.architecture.as_str()),
        ("linux", std::env::consts::ARCH)
    );
    assert!(description.nano_cpus >= 1_000_000_000 && description.memory_bytes > 0, "{description:?}");
    assert!(
        description.plugins.contains(&("Volume".to_owned(), "local".to_owned())),
        "{:?}",
        description.plugins
    );
}
