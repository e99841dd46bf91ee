//! A manager for tests, and a link that connects to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use ipnet::Ipv4Net;
use mesh_agent::control_link::identity::Identity;
use mesh_agent::control_link::relay_keys::RelayKeys;
use mesh_agent::control_link::token::{JoinToken, certificate_digest};
use mesh_agent::control_link::{AssignmentChange, Link, LinkChannels};
use mesh_agent::task::logs::{LogLine, LogRequest, LogSource, LogStream};
use mesh_agent::task::runtime::RuntimeError;
use mesh_agent::view::NodeView;
use mesh_state::ids::TaskId;
use mesh_state::node::{NodeDescription, PortClash};
use mesh_state::proto::agent_message::Body as Up;
use mesh_state::proto::control_message::Body as Down;
use mesh_state::proto::membership_server::{Membership, MembershipServer};
use mesh_state::proto::node_service_server::{NodeService, NodeServiceServer};
use mesh_state::proto::{self, AgentMessage, ControlMessage};
use mesh_state::task::TaskStatus;
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

pub(crate) const SECRET: &str = "abcdefghijklmnopqrstuvwx1";
pub(crate) const SOON: Duration = Duration::from_secs(5);
pub(crate) const EXPULSION_GRACE: Duration = Duration::from_millis(500);

pub(crate) struct Ca {
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
    pub(crate) pem: String,
    pub(crate) digest: String,
}

pub(crate) fn make_ca() -> Ca {
    let key = KeyPair::generate().expect("a CA key");
    let mut params = CertificateParams::new(Vec::new()).expect("CA parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("a CA certificate");
    Ca { params, key, pem: certificate.pem(), digest: certificate_digest(certificate.der()) }
}

impl Ca {
    pub(crate) fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub(crate) fn token(&self) -> JoinToken {
        format!("SWMTKN-1-{}-{SECRET}", self.digest).parse().expect("a token")
    }

    /// Signs a member's certificate for the key in a request, valid from `since` until `until`,
    /// seconds from now.
    pub(crate) fn sign(&self, csr_pem: &str, since: i64, until: i64) -> Result<String, rcgen::Error> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        let moment = |offset: i64| {
            let seconds = now.as_secs().checked_add_signed(offset).expect("a moment");
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        csr.params.not_before = moment(since);
        csr.params.not_after = moment(until);
        csr.params.distinguished_name.push(DnType::CommonName, "node-of-test");
        csr.params.distinguished_name.push(DnType::OrganizationalUnitName, "mesh-worker");
        Ok(csr.signed_by(&self.issuer())?.pem())
    }

    /// A member whose certificate is valid from `since` until `until`, seconds from now.
    pub(crate) fn member(&self, since: i64, until: i64) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).and_then(|csr| csr.pem());
        Identity {
            node_id: "node-of-test".into(),
            key_pem: key.serialize_pem(),
            certificate_pem: self.sign(&csr.expect("a request"), since, until).expect("a certificate"),
            ca_pem: self.pem.clone(),
        }
    }

    fn renewed(&self, csr_pem: &str) -> Result<Response<proto::RenewResponse>, Status> {
        let signed = self.sign(csr_pem, -60, 90 * 24 * 3600);
        let certificate_pem = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(proto::RenewResponse { certificate_pem, ca_pem: String::new() }))
    }

    pub(crate) fn server_tls(&self) -> ServerTlsConfig {
        let key = KeyPair::generate().expect("a server key");
        let params = CertificateParams::new(vec!["mesh-manager".to_owned()]).expect("server parameters");
        let leaf = params.signed_by(&key, &self.issuer()).expect("a server certificate");
        ServerTlsConfig::new()
            .identity(ServerIdentity::from_pem(format!("{}{}", leaf.pem(), self.pem), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&self.pem))
            .client_auth_optional(true)
    }
}

/// One session as the manager sees it: its hello, and channels through which the test sends and
/// receives.
pub(crate) struct SessionOfTest {
    pub(crate) hello: proto::Hello,
    pub(crate) up: Streaming<AgentMessage>,
    pub(crate) down: mpsc::Sender<Result<ControlMessage, Status>>,
}

impl SessionOfTest {
    pub(crate) async fn say(&self, body: Down) {
        self.down.send(Ok(ControlMessage { body: Some(body) })).await.expect("the agent listens");
    }

    /// The next message that `pick` takes; others (heartbeats) are skipped.
    pub(crate) async fn hear<T>(&mut self, pick: impl Fn(Up) -> Option<T>) -> T {
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
pub(crate) type LogsOfTest = (Streaming<proto::LogBatch>, oneshot::Sender<()>);

pub(crate) struct Manager {
    pub(crate) ca: Arc<Ca>,
    pub(crate) sessions: mpsc::Sender<SessionOfTest>,
    pub(crate) logs: mpsc::Sender<LogsOfTest>,
    pub(crate) ends: mpsc::Sender<proto::TaskStatuses>,
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

    async fn renew_expired(
        &self,
        request: Request<proto::RenewExpiredRequest>,
    ) -> Result<Response<proto::RenewResponse>, Status> {
        self.ca.renewed(&request.into_inner().csr_pem)
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

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::RenewResponse>, Status> {
        if request.peer_certs().is_none_or(|certificates| certificates.is_empty()) {
            return Err(Status::unauthenticated("no client certificate"));
        }
        self.ca.renewed(&request.into_inner().csr_pem)
    }

    async fn report_ends(
        &self,
        request: Request<proto::TaskStatuses>,
    ) -> Result<Response<proto::EndsTaken>, Status> {
        self.ends.send(request.into_inner()).await.expect("the test waits for ends");
        Ok(Response::new(proto::EndsTaken {}))
    }

    async fn attach(
        &self,
        _request: Request<proto::AttachRequest>,
    ) -> Result<Response<proto::AttachResponse>, Status> {
        Err(Status::not_found("this manager has no networks"))
    }

    async fn detach(
        &self,
        _request: Request<proto::DetachRequest>,
    ) -> Result<Response<proto::DetachResponse>, Status> {
        Ok(Response::new(proto::DetachResponse {}))
    }

    async fn become_manager(
        &self,
        _: Request<proto::BecomeManagerRequest>,
    ) -> Result<Response<proto::BecomeManagerResponse>, Status> {
        Err(Status::permission_denied("no node is a manager here"))
    }

    async fn leave(
        &self,
        _request: Request<proto::LeaveRequest>,
    ) -> Result<Response<proto::LeaveResponse>, Status> {
        Ok(Response::new(proto::LeaveResponse {}))
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) sessions: mpsc::Receiver<SessionOfTest>,
    pub(crate) logs: mpsc::Receiver<LogsOfTest>,
    pub(crate) ends: mpsc::Receiver<proto::TaskStatuses>,
    pub(crate) server: JoinHandle<()>,
}

pub(crate) async fn serve(ca: &Arc<Ca>) -> Running {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (sender, sessions) = mpsc::channel(4);
    let (log_sender, logs) = mpsc::channel(4);
    let (end_sender, ends) = mpsc::channel(4);
    let manager = || Manager {
        ca: Arc::clone(ca),
        sessions: sender.clone(),
        logs: log_sender.clone(),
        ends: end_sender.clone(),
    };
    let router = Server::builder()
        .tls_config(ca.server_tls())
        .expect("TLS settings")
        .add_service(MembershipServer::new(manager()))
        .add_service(NodeServiceServer::new(manager()));
    let server = tokio::spawn(async move {
        router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("the server serves");
    });
    Running { address, sessions, logs, ends, server }
}

/// The agent's side of a link under test.
pub(crate) struct Agent {
    pub(crate) clashes: watch::Sender<Vec<PortClash>>,
    pub(crate) host_networks: watch::Sender<Option<Vec<Ipv4Net>>>,
    pub(crate) statuses: mpsc::Sender<(TaskId, TaskStatus)>,
    pub(crate) assignments: mpsc::Receiver<AssignmentChange>,
    pub(crate) view: watch::Receiver<Arc<NodeView>>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) keys: watch::Receiver<RelayKeys>,
    pub(crate) connected: watch::Receiver<bool>,
    pub(crate) expelled: watch::Receiver<bool>,
    pub(crate) description: watch::Sender<NodeDescription>,
    pub(crate) shutdown: CancellationToken,
}

pub(crate) fn start_link(managers: Vec<SocketAddr>, identity: Identity) -> Agent {
    let node = NodeView::new(identity.node_id.clone(), Ipv4Addr::new(10, 77, 0, 11));
    let (view_sender, view) = watch::channel(Arc::new(node));
    let (statuses, status_receiver) = mpsc::channel(16);
    let (assignment_sender, assignments) = mpsc::channel(16);
    let (applied, applied_receiver) = watch::channel(0);
    let (clashes, clashes_receiver) = watch::channel(Vec::new());
    let (host_networks, host_networks_receiver) = watch::channel(None);
    let (keys_sender, keys) = watch::channel(RelayKeys::default());
    let (connected_sender, connected) = watch::channel(false);
    let (expelled_sender, expelled) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let (description, descriptions) =
        watch::channel(NodeDescription { hostname: "test".into(), ..NodeDescription::default() });
    let channels = LinkChannels {
        loads: Arc::default(),
        logs: Arc::new(Counting),
        description: descriptions,
        statuses: status_receiver,
        assignments: assignment_sender,
        view: view_sender,
        applied: applied_receiver,
        clashes: clashes_receiver,
        host_networks: host_networks_receiver,
        relay_keys: keys_sender,
        trusted_cas: watch::Sender::new(None),
        engine_away: watch::channel(false).1,
        connected: connected_sender,
        expelled: expelled_sender,
        expulsion_grace: EXPULSION_GRACE,
    };
    let (_, identity) = watch::channel(identity);
    tokio::spawn(Link::new(managers, identity, channels).run(shutdown.clone()));
    Agent {
        clashes,
        host_networks,
        statuses,
        assignments,
        view,
        applied,
        keys,
        connected,
        expelled,
        description,
        shutdown,
    }
}

/// A log source whose tasks count for ever, in lines; `gone` has no container and `broken` no
/// engine.
pub(crate) struct Counting;

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

pub(crate) async fn next_session(manager: &mut Running) -> SessionOfTest {
    let session = timeout(SOON, manager.sessions.recv()).await.expect("a session soon").expect("a session");
    let welcome = proto::Welcome {
        node_id: "node-of-test".into(),
        subnet: "10.128.1.0/24".into(),
        heartbeat_ms: 100,
        relay_key: vec![7; 32],
        takes_host_networks: true,
    };
    session.say(Down::Welcome(welcome)).await;
    session
}

pub(crate) fn table(generation: u64, base_generation: u64) -> proto::MeshTable {
    let node = proto::MeshNode {
        id: "node-of-test".into(),
        address: "10.77.0.11".into(),
        hostname: "a".into(),
        ..Default::default()
    };
    proto::MeshTable { generation, base_generation, nodes: vec![node], ..proto::MeshTable::default() }
}

pub(crate) async fn wait_for_generation(agent: &mut Agent, generation: u64) {
    timeout(SOON, agent.view.wait_for(|view| view.generation == generation))
        .await
        .unwrap_or_else(|_| panic!("the view never reached generation {generation}"))
        .expect("the link lives");
}
