//! A node played by the test: joins, keeps a session, and reports on tasks without running any.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_control::ca::token::certificate_digest;
use mesh_state::node::NodeDescription;
use mesh_state::proto::agent_message::Body as Up;
use mesh_state::proto::control_message::Body as Down;
use mesh_state::proto::membership_client::MembershipClient;
use mesh_state::proto::node_service_client::NodeServiceClient;
use mesh_state::proto::{self, AgentMessage, ControlMessage, Heartbeat, Hello, JoinRequest};
use mesh_state::task::{Assignment, ContainerStatus, TaskState, TaskStatus};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

use super::DEADLINE;

/// A member's identity.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) key_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) ca_pem: String,
}

impl Member {
    /// The digests of the CAs that it trusts.
    pub(crate) fn trusts(&self) -> Vec<String> {
        let certificates = CertificateDer::pem_slice_iter(self.ca_pem.as_bytes());
        certificates.map(|der| certificate_digest(&der.unwrap())).collect()
    }

    /// Renews its certificate over mutual TLS, with a new key.
    pub(crate) async fn renew(&self, manager: SocketAddr) -> Result<Self, Status> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .identity(Identity::from_pem(&self.certificate_pem, &self.key_pem));
        let key = KeyPair::generate().unwrap();
        let csr_pem = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let mut client = NodeServiceClient::new(connect(manager, tls).await?);
        let answer = client.renew(proto::RenewRequest { csr_pem }).await?.into_inner();
        let proto::RenewResponse { certificate_pem, ca_pem } = answer;
        Ok(Self { id: self.id.clone(), key_pem: key.serialize_pem(), certificate_pem, ca_pem })
    }
}

pub(crate) async fn connect(manager: SocketAddr, tls: ClientTlsConfig) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("https://{manager}")).unwrap();
    let connected = endpoint.tls_config(tls.domain_name("mesh-manager")).unwrap().connect().await;
    connected.map_err(|error| Status::unavailable(error.to_string()))
}

/// Joins the cluster of `manager`.
pub(crate) async fn join(
    manager: SocketAddr,
    token: &str,
    ca_pem: &str,
    hostname: &str,
) -> Result<Member, Status> {
    let key = KeyPair::generate().unwrap();
    let csr_pem = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca_pem));
    let mut client = MembershipClient::new(connect(manager, tls).await?);
    let availability = String::new();
    let request =
        JoinRequest { token: token.to_owned(), csr_pem, hostname: hostname.to_owned(), availability };
    let answer = client.join(request).await?.into_inner();
    Ok(Member {
        id: answer.node_id,
        key_pem: key.serialize_pem(),
        certificate_pem: answer.certificate_pem,
        ca_pem: answer.ca_pem,
    })
}

/// Sends all `batches` to `manager` as `member`.
pub(crate) async fn publish_logs(
    manager: SocketAddr,
    member: &Member,
    batches: Vec<proto::LogBatch>,
) -> Result<proto::LogsTaken, Status> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&member.ca_pem))
        .identity(Identity::from_pem(&member.certificate_pem, &member.key_pem));
    let mut client = NodeServiceClient::new(connect(manager, tls).await?);
    Ok(client.publish_logs(tokio_stream::iter(batches)).await?.into_inner())
}

/// Reports to `manager`, which has no session of `member`, that a task has failed.
pub(crate) async fn report_end(manager: SocketAddr, member: &Member, task: &str) -> Result<(), Status> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&member.ca_pem))
        .identity(Identity::from_pem(&member.certificate_pem, &member.key_pem));
    let mut client = NodeServiceClient::new(connect(manager, tls).await?);
    let status = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
    let status_json = serde_json::to_string(&status).unwrap();
    let statuses = vec![proto::TaskStatus { task_id: task.to_owned(), status_json, number: 0 }];
    client.report_ends(proto::TaskStatuses { statuses }).await.map(drop)
}

/// An address that no other member of the test has.
fn address_of(member: &Member) -> Ipv4Addr {
    let mut hasher = DefaultHasher::new();
    member.id.hash(&mut hasher);
    let [.., high, low] = hasher.finish().to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// A session of a member, with heartbeats until it is dropped.
pub(crate) struct Session {
    pub(crate) up: mpsc::Sender<AgentMessage>,
    down: Streaming<ControlMessage>,
    heartbeats: tokio::task::JoinHandle<()>,
    /// Every message of the table, in order.
    pub(crate) tables: Vec<proto::MeshTable>,
    /// Every assignment, in order.
    pub(crate) assignments: Vec<Assignment>,
    /// Every secret and config, in order.
    pub(crate) dependencies: Vec<proto::Dependency>,
    /// Loads of others' backends, in order.
    pub(crate) loads: Vec<proto::BackendLoad>,
    /// Every request for logs, in order.
    pub(crate) logs_wanted: Vec<proto::LogsWanted>,
    /// Tasks whose statuses were acknowledged.
    pub(crate) acknowledged: Vec<String>,
    /// The managers that were told last.
    pub(crate) managers: Vec<String>,
    /// The CAs to trust that were told last.
    pub(crate) cas: Option<proto::TrustedCas>,
    pub(crate) welcome: proto::Welcome,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

impl Session {
    /// Opens a session and waits for the welcome.
    pub(crate) async fn open(
        manager: SocketAddr,
        member: &Member,
        table_generation: u64,
    ) -> Result<Self, Status> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&member.ca_pem))
            .identity(Identity::from_pem(&member.certificate_pem, &member.key_pem));
        let mut client = NodeServiceClient::new(connect(manager, tls).await?);
        let (up, messages) = mpsc::channel(64);
        let description = NodeDescription {
            hostname: "fake".to_owned(),
            trusts: member.trusts(),
            ..NodeDescription::default()
        };
        let hello = Hello {
            description_json: serde_json::to_string(&description).unwrap(),
            address: address_of(member).to_string(),
            table_generation,
            takes_managers: true,
            takes_cas: true,
        };
        up.send(AgentMessage { body: Some(Up::Hello(hello)) }).await.unwrap();
        let mut down = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let first = tokio::time::timeout(DEADLINE, down.message()).await.expect("no welcome came")?;
        let Some(Down::Welcome(welcome)) = first.and_then(|message| message.body) else {
            panic!("the first message is no welcome")
        };
        let (beats, every) = (up.clone(), Duration::from_millis(welcome.heartbeat_ms.into()));
        let heartbeats = tokio::spawn(async move {
            while beats.send(AgentMessage { body: Some(Up::Heartbeat(Heartbeat::default())) }).await.is_ok() {
                tokio::time::sleep(every).await;
            }
        });
        let (tables, assignments, loads, acknowledged) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (dependencies, logs_wanted) = (Vec::new(), Vec::new());
        Ok(Self {
            up,
            down,
            heartbeats,
            tables,
            assignments,
            dependencies,
            loads,
            logs_wanted,
            acknowledged,
            managers: Vec::new(),
            cas: None,
            welcome,
        })
    }

    /// Stops sending heartbeats, but leaves the stream open.
    pub(crate) fn fall_silent(&self) {
        self.heartbeats.abort();
    }

    /// Receives messages until `seen` finds what it looks for.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        seen: impl Fn(&Self) -> Option<T>,
    ) -> Result<T, Status> {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            if let Some(found) = seen(self) {
                return Ok(found);
            }
            let next = tokio::time::timeout_at(deadline, self.down.message()).await;
            let next = next.unwrap_or_else(|_| panic!("expected {what} within {DEADLINE:?}, never saw it"));
            let message = next?.ok_or_else(|| Status::aborted("the stream ended"))?;
            match message.body.expect("a message without a body") {
                Down::Welcome(_) => panic!("a second welcome"),
                Down::Assignments(assignments) => {
                    let read = |one: &proto::Assignment| serde_json::from_str(&one.assignment_json).unwrap();
                    self.assignments.extend(assignments.set.iter().map(read));
                }
                Down::Table(table) => {
                    let base = self.tables.last().map_or(0, |last| last.generation);
                    assert_eq!(table.base_generation, base, "a delta must stand on the table before it");
                    let early_removal = !table.removed_backend_ids.is_empty() && table.backends.is_empty();
                    assert!(
                        table.generation > base || (table.generation == base && early_removal),
                        "generations must rise: {base}, then {}",
                        table.generation
                    );
                    self.tables.push(table);
                }
                Down::Loads(loads) => self.loads.extend(loads.loads),
                Down::Dependency(dependency) => self.dependencies.push(dependency),
                Down::LogsWanted(wanted) => self.logs_wanted.push(wanted),
                Down::MemberKeys(_) => panic!("keys for an agent that doesn't say that it knows them"),
                Down::Managers(told) => self.managers = told.addresses,
                Down::TrustedCas(told) => self.cas = Some(told),
                Down::StatusAck(ack) => self.acknowledged.extend(ack.task_ids),
            }
        }
    }

    /// Reports a task's state.
    pub(crate) async fn report(&self, task: &str, state: TaskState, address: Option<&str>) {
        let container = address.map(|address| ContainerStatus {
            container_id: format!("container-of-{task}"),
            pid: 1,
            exit_code: 0,
            address: Some(address.parse().unwrap()),
            ..ContainerStatus::default()
        });
        let status = TaskStatus {
            state,
            timestamp: chrono::Utc::now(),
            message: state.as_str().to_owned(),
            container,
            ..TaskStatus::default()
        };
        let status_json = serde_json::to_string(&status).unwrap();
        let statuses = vec![proto::TaskStatus { task_id: task.to_owned(), status_json, number: 0 }];
        let message = AgentMessage { body: Some(Up::Statuses(proto::TaskStatuses { statuses })) };
        self.up.send(message).await.unwrap();
    }

    /// The state of the newest entry for a backend of `task` in the tables seen, if there is one.
    pub(crate) fn backend_of(&self, task: &str) -> Option<proto::MeshBackend> {
        let mut all = self.tables.iter().flat_map(|table| &table.backends);
        all.rfind(|backend| backend.task_id == task).cloned()
    }
}
