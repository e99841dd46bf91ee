//! The node's `docker.sock` with the unmodified `docker` CLI on one side and a real engine on the
//! other.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod engine;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use engine::{Engine, docker, stderr, stdout};
use http_body_util::Full;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use mesh_admission::door::Door;
use mesh_admission::figures::Listener;
use mesh_admission::refusals::Refusals;
use mesh_agent::docker_api::{self, Upstreams};
use mesh_agent::enrolment::{Call, Desk, EnrolmentError, LocalState};
use mesh_agent::view::NodeView;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The socket under test, served until dropped.
struct Served {
    runtime: tokio::runtime::Runtime,
    socket: PathBuf,
    shutdown: CancellationToken,
    _view: watch::Sender<Arc<NodeView>>,
    desk: Desk,
}

impl Served {
    fn start(engine: &Engine) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let socket = engine.path("docker.sock");
        let shutdown = CancellationToken::new();
        let view = Arc::new(NodeView::new("node7".into(), Ipv4Addr::new(10, 0, 0, 7)));
        let (sender, view) = watch::channel(view);
        let (desk, enrolment) = Desk::new(LocalState::Active);
        let upstreams = Upstreams {
            engine: engine.socket(),
            control: engine.path("control.sock"),
            tunnel_port: 4799,
            view,
            fallback: watch::channel(None).1,
            attachments: Arc::default(),
            enrolment,
            promotions: Arc::default(),
        };
        let listener = runtime.block_on(async { docker_api::bind(&socket, "") }).unwrap();
        let door =
            Door::new(Listener::DockerSocket, Listener::DockerSocket.figures(), Refusals::new().unwrap());
        runtime.spawn(docker_api::serve(listener, upstreams, door, shutdown.clone()));
        Self { runtime, socket, shutdown, _view: sender, desk }
    }

    fn docker(&self, arguments: &[&str]) -> Output {
        docker(&self.socket, arguments, "")
    }

    /// A manager's socket that knows one network and echoes the call's path as an error for the
    /// rest.
    fn start_control(&self, path: &Path) {
        let _guard = self.runtime.enter();
        let listener = UnixListener::bind(path).unwrap();
        self.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service =
                    hyper::service::service_fn(
                        |request| async move { Ok::<_, hyper::Error>(control(&request)) },
                    );
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn control(request: &Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let (status, body) = match path.rsplit_once("/v1.41").map_or(path, |(_, rest)| rest) {
        "/_ping" => (200, "OK".to_owned()),
        "/info" => {
            (200, r#"{"Swarm":{"NodeID":"m1","ControlAvailable":true,"LocalNodeState":"active"}}"#.to_owned())
        }
        "/networks" => {
            (200, r#"[{"Id":"n1","Name":"ingress","Driver":"overlay","Scope":"swarm"}]"#.to_owned())
        }
        "/networks/ingress" => {
            (200, r#"{"Id":"n1","Name":"ingress","Driver":"overlay","Scope":"swarm"}"#.to_owned())
        }
        "/networks/prune" => (200, r#"{"NetworksDeleted":["over"]}"#.to_owned()),
        "/networks/create" => (201, r#"{"Id":"made-by-control"}"#.to_owned()),
        other => (404, format!(r#"{{"message":"control saw {} {other}"}}"#, request.method())),
    };
    Response::builder().status(status).header("Api-Version", "1.50").body(Full::from(body)).unwrap()
}

#[test]
fn the_cli_works_on_containers_through_the_socket() {
    let Some(engine) = engine::start() else { return };
    let served = Served::start(&engine);

    let run = served.docker(&["run", "--rm", "busybox", "echo", "hello"]);
    assert_eq!(stdout(&run), "hello", "docker run: {}", stderr(&run));
    let failed = served.docker(&["run", "--rm", "busybox", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "exit code of docker run: {}", stderr(&failed));

    // Stdin is forwarded, its end is seen inside, and the output still comes back after it.
    let piped = docker(&served.socket, &["run", "-i", "--rm", "busybox", "wc", "-c"], &"x".repeat(300_000));
    assert_eq!(stdout(&piped), "300000", "docker run -i: {}", stderr(&piped));

    let started = served.docker(&[
        "run",
        "-d",
        "--name",
        "talker",
        "busybox",
        "sh",
        "-c",
        "echo one; sleep 1; echo two; sleep 60",
    ]);
    assert!(started.status.success(), "docker run -d: {}", stderr(&started));
    let exec = docker(&served.socket, &["exec", "-i", "talker", "cat"], "through exec");
    assert_eq!(stdout(&exec), "through exec", "docker exec -i: {}", stderr(&exec));
    let status = served.docker(&["exec", "talker", "sh", "-c", "exit 3"]);
    assert_eq!(status.status.code(), Some(3), "exit code of docker exec");
    let detached = served.docker(&["exec", "-d", "talker", "true"]);
    assert!(detached.status.success(), "docker exec -d: {}", stderr(&detached));

    build_image(&engine, &served);
    follow_logs(&served);
    attach_with_terminal(&served);

    let removed = served.docker(&["rm", "-f", "talker"]);
    assert!(removed.status.success(), "docker rm: {}", stderr(&removed));
    let missing = served.docker(&["inspect", "talker"]);
    assert!(
        stderr(&missing).contains("No such object"),
        "the engine's errors pass through: {}",
        stderr(&missing)
    );
}

/// The build context is sent in one streamed body.
fn build_image(engine: &Engine, served: &Served) {
    let context = engine.path("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), "FROM busybox\nCOPY data /data\n").unwrap();
    std::fs::write(context.join("data"), vec![b'x'; 3_000_000]).unwrap();
    let built = served.docker(&["build", "-q", "-t", "built:1", context.to_str().unwrap()]);
    assert!(built.status.success(), "docker build: {}", stderr(&built));
    let counted = served.docker(&["run", "--rm", "built:1", "wc", "-c", "/data"]);
    assert_eq!(stdout(&counted), "3000000 /data", "the file that was copied: {}", stderr(&counted));
}

/// `logs -f` shows lines as they come, not when the container ends.
fn follow_logs(served: &Served) {
    let mut logs = Command::new("docker")
        .args(["-H", &format!("unix://{}", served.socket.display()), "logs", "-f", "talker"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    assert_eq!(lines.next().unwrap().unwrap(), "two");
    logs.kill().unwrap();
    logs.wait().unwrap();
}

/// `docker run -it` under a pseudo-terminal.
fn attach_with_terminal(served: &Served) {
    // `timeout` stays outside: inside it would make a process group of its own, which may not read
    // the terminal.
    let command = format!("exec docker -H unix://{} run -it --rm busybox sh", served.socket.display());
    let mut script = Command::new("timeout")
        .args(["--kill-after=5", "30", "script", "-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(script.stdin.as_mut().unwrap(), b"echo $((40+2))\nexit 5\n").unwrap();
    let output = script.wait_with_output().unwrap();
    let text = stdout(&output);
    assert!(text.contains("42"), "docker run -it printed {text:?}");
    assert_eq!(output.status.code(), Some(5), "exit code of the shell in docker run -it: {text}");
}

/// The swarm calls of a node without a manager.
fn swarm_calls_are_refused(served: &Served) {
    for words in [&["service", "ls"][..], &["node", "ls"], &["swarm", "join-token", "worker"]] {
        let listed = served.docker(words);
        let said = stderr(&listed);
        assert!(said.contains("This node is not a swarm manager. Worker nodes"), "{words:?}: {said}");
    }
    let network = served.docker(&["network", "create", "-d", "overlay", "over"]);
    assert!(stderr(&network).contains("Cannot create a multi-host network"), "{}", stderr(&network));
    let format = "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}} {{.Swarm.NodeID}} {{.Swarm.Error}}";
    assert_eq!(stdout(&served.docker(&["info", "-f", format])), "active false node7");
    assert!(ping(&served.socket).contains("swarm: active/worker"), "ping says {}", ping(&served.socket));
}

#[test]
fn a_worker_answers_as_swarms_worker() {
    let Some(mut engine) = engine::start() else { return };
    let served = Served::start(&engine);
    swarm_calls_are_refused(&served);
    // A manager that was killed leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(engine.path("control.sock")).unwrap());
    swarm_calls_are_refused(&served);

    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&served.socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660, "mode of docker.sock");

    served.docker(&["run", "-d", "--name", "task", "-l", "com.docker.swarm.task=", "busybox", "sleep", "60"]);
    served.docker(&["run", "-d", "--name", "plain", "busybox", "sleep", "60"]);
    let names = |filter| stdout(&served.docker(&["ps", "--filter", filter, "--format", "{{.Names}}"]));
    assert_eq!(names("is-task=true"), "task");
    assert_eq!(names("is-task=false"), "plain");
    served.docker(&["rm", "-f", "task", "plain"]);

    engine.halt();
    let down = served.docker(&["ps"]);
    let expected = format!("cannot reach the Docker engine at unix://{}", engine.socket().display());
    assert!(stderr(&down).contains(&expected), "with the engine down: {}", stderr(&down));
    engine.boot();
    assert!(served.docker(&["ps"]).status.success(), "the engine is back");
}

#[test]
fn a_manager_answers_for_the_swarm() {
    let Some(engine) = engine::start() else { return };
    let served = Served::start(&engine);
    served.start_control(&engine.path("control.sock"));

    let ping = ping(&served.socket);
    assert!(ping.contains("swarm: active/manager") && ping.contains("api-version: 1.41"), "ping says {ping}");
    let listed = served.docker(&["service", "ls"]);
    assert!(stderr(&listed).contains("control saw GET /services"), "docker service ls: {}", stderr(&listed));
    let info =
        stdout(&served.docker(&["info", "-f", "{{.Swarm.NodeID}} {{.Swarm.ControlAvailable}} {{.OSType}}"]));
    assert_eq!(info, "node7 true linux", "the agent knows its node, whatever a manager takes for it");

    let networks = stdout(&served.docker(&["network", "ls", "--format", "{{.Name}} {{.Scope}}"]));
    assert!(
        networks.contains("host local") && networks.contains("ingress swarm"),
        "docker network ls: {networks}"
    );
    let inspected = stdout(&served.docker(&["network", "inspect", "-f", "{{.Scope}}", "ingress"]));
    assert_eq!(inspected, "swarm");
    assert_eq!(stdout(&served.docker(&["network", "inspect", "-f", "{{.Driver}}", "host"])), "host");
    assert_eq!(stdout(&served.docker(&["network", "create", "-d", "overlay", "over"])), "made-by-control");
    for name in ["local", "unused"] {
        let local = served.docker(&["network", "create", name]);
        assert!(local.status.success(), "docker network create: {}", stderr(&local));
    }
    for arguments in [["create", "ingress"].as_slice(), &["create", "-d", "overlay", "local"]] {
        let clash = served.docker(&[&["network"], arguments].concat());
        let taken = format!("network with name {} already exists", arguments[arguments.len() - 1]);
        assert!(stderr(&clash).contains(&taken), "network {arguments:?}: {}", stderr(&clash));
    }
    // Networks made on the engine's own socket may clash with the cluster's. Nobody can tell which
    // one a name means, so nobody's network is removed.
    let beside = |arguments: &[&str]| assert!(docker(&engine.socket(), arguments, "").status.success());
    beside(&["network", "create", "ingress"]);
    for verb in ["inspect", "rm"] {
        let said = stderr(&served.docker(&["network", verb, "ingress"]));
        let expected = "network ingress is ambiguous (2 matches found based on name)";
        assert!(said.contains(expected), "docker network {verb}: {said}");
    }
    beside(&["network", "rm", "ingress"]);
    // A bridge that the agent made for a network of the cluster's is that network to clients.
    beside(&["network", "create", "--internal", "--label", "mesh.network=n1", "ingress"]);
    let networks = stdout(&served.docker(&["network", "ls", "--format", "{{.Name}} {{.Scope}}"]));
    let own: Vec<_> = networks.lines().filter(|line| line.starts_with("ingress ")).collect();
    assert_eq!(own, ["ingress swarm"], "docker network ls: {networks}");
    assert_eq!(
        stdout(&served.docker(&["network", "inspect", "-f", "{{.Id}} {{.Scope}}", "ingress"])),
        "n1 swarm"
    );
    let run = served.docker(&["run", "--rm", "--network", "ingress", "busybox", "true"]);
    assert!(stderr(&run).contains("not manually attachable"), "docker run: {}", stderr(&run));
    beside(&["network", "rm", "ingress"]);
    beside(&["create", "--name", "still", "busybox", "true"]);
    for (network, expected) in
        [("ingress", "not manually attachable"), ("nosuch", "network nosuch not found")]
    {
        let said = stderr(&served.docker(&["network", "connect", network, "still"]));
        assert!(said.contains(expected), "docker network connect {network}: {said}");
    }
    let connected = served.docker(&["network", "connect", "local", "still"]);
    assert!(connected.status.success(), "docker network connect local: {}", stderr(&connected));
    beside(&["rm", "still"]);
    assert!(served.docker(&["network", "rm", "local"]).status.success());
    assert!(served.docker(&["network", "create", "--label", "mesh.network=", "ours"]).status.success());
    let pruned = stdout(&served.docker(&["network", "prune", "--force"]));
    assert_eq!(pruned, "Deleted Networks:\nover\nunused", "docker network prune");
    let spare = ["network", "prune", "--force", "--filter", "label!=keep"];
    let pruned = stdout(&served.docker(&spare));
    assert_eq!(pruned, "Deleted Networks:\nover", "what the agent makes again is not named");
    let bad = served.docker(&["network", "prune", "--force", "--filter", "colour=red"]);
    assert!(stderr(&bad).to_lowercase().contains("invalid filter"), "an unknown filter: {}", stderr(&bad));
}

/// The head of `/_ping`, lower case.
fn ping(socket: &Path) -> String {
    let output = Command::new("curl")
        .args(["-sI", "--unix-socket"])
        .arg(socket)
        .arg("http://docker/_ping")
        .output()
        .unwrap();
    stdout(&output).to_lowercase()
}

#[test]
fn a_node_in_no_cluster_answers_as_swarms_inactive_node() {
    let Some(engine) = engine::start() else { return };
    let mut served = Served::start(&engine);
    served.desk.state.send_replace(LocalState::Inactive);
    // Nobody asks the manager of a node in no cluster.
    served.start_control(&engine.path("control.sock"));

    let info =
        stdout(&served.docker(&["info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"]));
    assert_eq!(info, "inactive false");
    assert!(ping(&served.socket).contains("swarm: inactive"), "ping says {}", ping(&served.socket));
    let no_manager = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect \
                      this node to swarm and try again.";
    for words in [
        &["service", "ls"][..],
        &["node", "ls"],
        &["swarm", "join-token", "worker"],
        &["network", "create", "-d", "overlay", "over"],
    ] {
        let refused = served.docker(words);
        assert!(stderr(&refused).contains(no_manager), "docker {words:?}: {}", stderr(&refused));
    }
    assert!(served.docker(&["network", "create", "plain"]).status.success(), "the engine's own networks");
    let token = format!("SWMTKN-1-{}-{}", "0f".repeat(32), "a".repeat(25));
    for (words, expected) in [
        (&["swarm", "join", "--token", "SWMTKN-1-x", "10.0.0.1:2377"][..], "invalid join token"),
        (
            &["swarm", "join", "--token", &token, "--advertise-addr", "eth77", "10.0.0.1:2377"],
            "advertise address must be a non-zero IP address or network interface (with optional port number)",
        ),
        (&["swarm", "join", "--token", &token, "10.0.0.1:x"], "invalid remoteAddr \"10.0.0.1:x\""),
    ] {
        let refused = served.docker(words);
        assert!(stderr(&refused).contains(expected), "docker {words:?}: {}", stderr(&refused));
    }

    // The calls that reach the desk bring back its answers.
    let Served { runtime, desk, socket, .. } = &mut served;
    let call = |words: &[&str], outcome: Result<(), EnrolmentError>, desk: &mut Desk| {
        let (socket, words) =
            (socket.clone(), words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let cli = std::thread::spawn(move || {
            docker(&socket, &words.iter().map(String::as_str).collect::<Vec<_>>(), "")
        });
        let seen = match runtime.block_on(desk.next()) {
            Call::Join(order, reply) => {
                reply.send(outcome).unwrap();
                format!("join {:?}", order.remotes)
            }
            Call::Leave { force, reply } => {
                reply.send(outcome).unwrap();
                format!("leave {force}")
            }
        };
        (seen, cli.join().unwrap())
    };
    let (seen, said) = call(&["swarm", "leave", "--force"], Err(EnrolmentError::NotMember), desk);
    assert_eq!(seen, "leave true");
    assert!(stderr(&said).contains("This node is not part of a swarm"), "{}", stderr(&said));
    let (seen, said) = call(&["swarm", "join", "--token", &token, "m1"], Err(EnrolmentError::Timeout), desk);
    assert_eq!(seen, r#"join ["m1:2377"]"#);
    assert!(stderr(&said).contains("Timeout was reached before node joined."), "{}", stderr(&said));
    let (_, said) = call(&["swarm", "join", "--token", &token, "m1"], Ok(()), desk);
    assert_eq!(stdout(&said), "This node joined a swarm as a worker.", "{}", stderr(&said));
    desk.state.send_replace(LocalState::Active);
    let again = served.docker(&["swarm", "join", "--token", &token, "m1"]);
    assert!(stderr(&again).contains("This node is already part of a swarm."), "{}", stderr(&again));
}
