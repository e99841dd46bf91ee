//! The link against a manager of the test's own: real TLS, real gRPC, one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use mesh_agent::control_link::identity::Identity;
use mesh_agent::control_link::join::{JoinError, join};
use mesh_agent::control_link::relay_keys::RelayKeys;
use mesh_agent::control_link::token::{JoinToken, certificate_digest};
use mesh_agent::control_link::{AssignmentChange, Ends, Link};
use mesh_agent::task::logs::{LogLine, LogRequest, LogSource, LogStream};
use mesh_agent::task::runtime::RuntimeError;
use mesh_agent::view::NodeView;
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::node::{NodeDescription, PortClash};
use mesh_state::proto::agent_message::Body as Up;
use mesh_state::proto::control_message::Body as Down;
use mesh_state::proto::membership_server::{Membership, MembershipServer};
use mesh_state::proto::node_service_server::{NodeService, NodeServiceServer};
use mesh_state::proto::{self, AgentMessage, ControlMessage};
use mesh_state::spec::Protocol;
use mesh_state::task::{TaskState, TaskStatus};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Identity as ServerIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

const SECRET: &str = "abcdefghijklmnopqrstuvwx1";
const SOON: Duration = Duration::from_secs(5);

struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
    digest: String,
}

fn make_ca() -> Ca {
    let key = KeyPair::generate().expect("a CA key");
    let mut params = CertificateParams::new(Vec::new()).expect("CA parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("a CA certificate");
    Ca { params, key, pem: certificate.pem(), digest: certificate_digest(certificate.der()) }
}

impl Ca {
    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn token(&self) -> JoinToken {
        format!("SWMTKN-1-{}-{SECRET}", self.digest).parse().expect("a token")
    }

    fn server_tls(&self) -> ServerTlsConfig {
        let key = KeyPair::generate().expect("a server key");
        let params = CertificateParams::new(vec!["mesh-manager".to_owned()]).expect("server parameters");
        let leaf = params.signed_by(&key, &self.issuer()).expect("a server certificate");
        ServerTlsConfig::new()
            .identity(ServerIdentity::from_pem(format!("{}{}", leaf.pem(), self.pem), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&self.pem))
            .client_auth_optional(true)
    }
}

/// What the manager saw of one session: its hello, then the test speaks through these.
struct SessionOfTest {
    hello: proto::Hello,
    up: Streaming<AgentMessage>,
    down: mpsc::Sender<Result<ControlMessage, Status>>,
}

impl SessionOfTest {
    async fn say(&self, body: Down) {
        self.down.send(Ok(ControlMessage { body: Some(body) })).await.expect("the agent listens");
    }

    /// The next message that `pick` takes; others (heartbeats) are passed over.
    async fn hear<T>(&mut self, pick: impl Fn(Up) -> Option<T>) -> T {
        let heard = async {
            loop {
                let message = self.up.message().await.expect("a sound stream").expect("an open stream");
                if let Some(found) = message.body.and_then(&pick) {
                    return found;
                }
            }
        };
        timeout(SOON, heard).await.expect("the awaited message came")
    }
}

/// Batches that the agent sends, until the other end is dropped.
type LogsOfTest = (Streaming<proto::LogBatch>, oneshot::Sender<()>);

struct Manager {
    ca: Arc<Ca>,
    sessions: mpsc::Sender<SessionOfTest>,
    logs: mpsc::Sender<LogsOfTest>,
}

#[tonic::async_trait]
impl Membership for Manager {
    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinResponse>, Status> {
        let request = request.into_inner();
        if request.token != self.ca.token().as_str() {
            return Err(Status::permission_denied("unknown token"));
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr_pem)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        csr.params.distinguished_name.push(DnType::CommonName, "node-of-test");
        csr.params.distinguished_name.push(DnType::OrganizationalUnitName, "mesh-worker");
        let certificate =
            csr.signed_by(&self.ca.issuer()).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(proto::JoinResponse {
            node_id: "node-of-test".into(),
            certificate_pem: certificate.pem(),
            ca_pem: self.ca.pem.clone(),
        }))
    }
}

#[tonic::async_trait]
impl NodeService for Manager {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ControlMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if request.peer_certs().is_none_or(|certificates| certificates.is_empty()) {
            return Err(Status::unauthenticated("no client certificate"));
        }
        let mut up = request.into_inner();
        let Some(Up::Hello(hello)) = up.message().await?.and_then(|message| message.body) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (down, messages) = mpsc::channel(16);
        self.sessions.send(SessionOfTest { hello, up, down }).await.expect("the test waits for sessions");
        Ok(Response::new(ReceiverStream::new(messages).boxed()))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<proto::LogBatch>>,
    ) -> Result<Response<proto::LogsTaken>, Status> {
        let (enough, told) = oneshot::channel();
        self.logs.send((request.into_inner(), enough)).await.expect("the test waits for logs");
        // Until the test has read enough.
        drop(told.await);
        Ok(Response::new(proto::LogsTaken {}))
    }
}

struct Running {
    address: SocketAddr,
    sessions: mpsc::Receiver<SessionOfTest>,
    logs: mpsc::Receiver<LogsOfTest>,
    server: JoinHandle<()>,
}

async fn serve(ca: &Arc<Ca>) -> Running {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (sender, sessions) = mpsc::channel(4);
    let (log_sender, logs) = mpsc::channel(4);
    let manager = || Manager { ca: Arc::clone(ca), sessions: sender.clone(), logs: log_sender.clone() };
    let router = Server::builder()
        .tls_config(ca.server_tls())
        .expect("TLS settings")
        .add_service(MembershipServer::new(manager()))
        .add_service(NodeServiceServer::new(manager()));
    let server = tokio::spawn(async move {
        router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("the server serves");
    });
    Running { address, sessions, logs, server }
}

/// The agent's side of a link under test.
struct Agent {
    clashes: watch::Sender<Vec<PortClash>>,
    statuses: mpsc::Sender<(TaskId, TaskStatus)>,
    assignments: mpsc::Receiver<AssignmentChange>,
    view: watch::Receiver<Arc<NodeView>>,
    applied: watch::Sender<u64>,
    keys: watch::Receiver<RelayKeys>,
    connected: watch::Receiver<bool>,
    description: watch::Sender<NodeDescription>,
    shutdown: CancellationToken,
}

fn start_link(managers: Vec<SocketAddr>, identity: Identity) -> Agent {
    let node = NodeView::new(identity.node_id.clone(), Ipv4Addr::new(10, 77, 0, 11));
    let (view_sender, view) = watch::channel(Arc::new(node));
    let (statuses, status_receiver) = mpsc::channel(16);
    let (assignment_sender, assignments) = mpsc::channel(16);
    let (applied, applied_receiver) = watch::channel(0);
    let (clashes, clashes_receiver) = watch::channel(Vec::new());
    let (keys_sender, keys) = watch::channel(RelayKeys::default());
    let (connected_sender, connected) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let (description, descriptions) =
        watch::channel(NodeDescription { hostname: "test".into(), ..NodeDescription::default() });
    let ends = Ends {
        loads: Arc::default(),
        logs: Arc::new(Counting),
        description: descriptions,
        statuses: status_receiver,
        assignments: assignment_sender,
        view: view_sender,
        applied: applied_receiver,
        clashes: clashes_receiver,
        relay_keys: keys_sender,
        engine_away: watch::channel(false).1,
        connected: connected_sender,
    };
    tokio::spawn(Link::new(managers, identity, ends).run(shutdown.clone()));
    Agent { statuses, assignments, view, applied, clashes, keys, connected, description, shutdown }
}

/// A source whose tasks count for ever, in lines; `gone` has no container and `broken` no engine.
struct Counting;

#[tonic::async_trait]
impl LogSource for Counting {
    async fn task_log(&self, task: &TaskId, request: &LogRequest) -> Result<Option<LogStream>, RuntimeError> {
        let lines = match task.as_str() {
            "gone" => return Ok(None),
            "broken" => return Err(RuntimeError::Unavailable("it is off".into())),
            _ => futures::stream::iter(0..).map(|number: i64| {
                let (stderr, details, data) = (false, String::new(), format!("{number}\n").into());
                Ok(LogLine { stderr, unix_ns: number, details, data })
            }),
        };
        Ok(Some(match request.tail {
            Some(tail) => lines.take(usize::try_from(tail).expect("a small tail")).boxed(),
            None => lines.boxed(),
        }))
    }
}

async fn next_session(manager: &mut Running) -> SessionOfTest {
    let session = timeout(SOON, manager.sessions.recv()).await.expect("a session soon").expect("a session");
    let welcome = proto::Welcome {
        node_id: "node-of-test".into(),
        subnet: "10.128.1.0/24".into(),
        heartbeat_ms: 100,
        relay_key: vec![7; 32],
    };
    session.say(Down::Welcome(welcome)).await;
    session
}

fn table(generation: u64, base_generation: u64) -> proto::MeshTable {
    let node = proto::MeshNode {
        id: "node-of-test".into(),
        address: "10.77.0.11".into(),
        hostname: "a".into(),
        ..Default::default()
    };
    proto::MeshTable { generation, base_generation, nodes: vec![node], ..proto::MeshTable::default() }
}

async fn wait_for_generation(agent: &mut Agent, generation: u64) {
    timeout(SOON, agent.view.wait_for(|view| view.generation == generation))
        .await
        .unwrap_or_else(|_| panic!("the view never reached generation {generation}"))
        .expect("the link lives");
}

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
    let text = mesh_agent::error_chain(&stranger);
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
    session.say(Down::StatusAck(proto::StatusAck { task_ids: vec!["a".into()] })).await;
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
