//! One session with one manager. Down come assignments, secrets, configs and the mesh table; up go
//! statuses, acks and heartbeats.
//!
//! Invariants: heartbeats go out whatever else is slow; every wait has a deadline; an invalid
//! message ends the session, so that the next one starts with a whole table.
//!
//! Left to others: which manager to try and when ([`super`]).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::{BackendId, TaskId};
use mesh_state::node::PortClash;
use mesh_state::proto::agent_message::Body as Up;
use mesh_state::proto::control_message::Body as Down;
use mesh_state::proto::node_service_client::NodeServiceClient;
use mesh_state::proto::{self, AgentMessage};
use mesh_state::report;
use mesh_state::task::TaskStatus;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use super::end_reports::is_sudden;
use super::member_keys::MemberKeysError;
use super::relay_keys::RelayKey;
use super::{AssignmentChange, Link};
use crate::lb::loads::{HEARSAY_AGE, LOAD_MAX, Loads};
use crate::task::dependencies::delivered::Delivered;
use crate::view::ViewError;

/// The deadline of a manager's first message, and of room in the stream.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long statuses wait for more of them to fill a batch; the end of a task doesn't wait.
const BATCH_WAIT: Duration = Duration::from_millis(20);
/// The most statuses in one message.
const BATCH_LIMIT: usize = 256;
/// The size in bytes at which a message of statuses is sent.
const BATCH_BYTES: usize = 1 << 20;
/// How long after sending unacknowledged statuses are sent again.
const RESEND_INTERVAL: Duration = Duration::from_secs(10);
/// Messages that may wait for the stream.
const UP_CAPACITY: usize = 64;
/// Valid heartbeat intervals in milliseconds; a manager's wish is clamped to them.
const HEARTBEAT_MS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// Why a session ended, or never began.
#[derive(Debug, Error)]
pub(super) enum SessionError {
    /// The connection failed.
    #[error("connect")]
    Connect(#[from] tonic::transport::Error),
    /// The node's description can't be encoded.
    #[error("encode the node's description")]
    Describe(#[from] serde_json::Error),
    /// The stream failed, or the manager refused it.
    #[error("manager: {} ({:?})", .0.message(), .0.code())]
    Refused(Box<tonic::Status>),
    /// The manager closed the stream.
    #[error("the manager closed the stream")]
    Closed,
    /// The manager sent nothing, or read nothing, before the deadline.
    #[error("{step}: nothing within {DEADLINE:?}")]
    Deadline {
        /// The step that timed out.
        step: &'static str,
    },
    /// A message came out of order, or lacks a mandatory field.
    #[error("{problem}: manager and agent are of different versions, upgrade the older")]
    Protocol {
        /// What is wrong with the message.
        problem: &'static str,
    },
    /// The mesh table is invalid.
    #[error("apply the mesh table")]
    Table(#[from] ViewError),
    /// The member keys are invalid.
    #[error("parse the member keys")]
    MemberKeys(#[from] MemberKeysError),
    /// The node's description changed; a session sends it only once, so a new one begins.
    #[error("the node's description changed")]
    DescriptionChanged,
    /// Another component of this agent has stopped.
    #[error("the agent stops")]
    Stopping,
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl SessionError {
    /// Whether a manager says that this node is no member of its cluster.
    pub(super) fn is_no_member(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == tonic::Code::PermissionDenied)
    }
}

/// A session that the manager has welcomed.
pub(super) struct Session<'a> {
    link: &'a mut Link,
    manager: SocketAddr,
    up: mpsc::Sender<AgentMessage>,
    down: Streaming<proto::ControlMessage>,
    heartbeat_interval: Duration,
    /// Whether the manager takes the networks of this node's host; older ones end the session.
    takes_host_networks: bool,
}

impl<'a> Session<'a> {
    /// Sends the hello and waits for the welcome.
    pub(super) async fn open(
        link: &'a mut Link,
        manager: SocketAddr,
        channel: Channel,
    ) -> Result<Self, SessionError> {
        let (up, messages) = mpsc::channel(UP_CAPACITY);
        let hello = link.hello()?;
        send(&up, Up::Hello(hello)).await?;
        let mut client = NodeServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut down = timeout(DEADLINE, client.session(ReceiverStream::new(messages)))
            .await
            .map_err(|_| SessionError::Deadline { step: "open the stream" })??
            .into_inner();
        let first = timeout(DEADLINE, down.message())
            .await
            .map_err(|_| SessionError::Deadline { step: "wait for the welcome" })??
            .ok_or(SessionError::Closed)?;
        let Some(Down::Welcome(welcome)) = first.body else {
            return Err(SessionError::Protocol { problem: "the first message was no welcome" });
        };
        let heartbeat_ms = welcome.heartbeat_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
        welcome_node(link, &welcome)?;
        Ok(Self {
            link,
            manager,
            up,
            down,
            heartbeat_interval: Duration::from_millis(heartbeat_ms.into()),
            takes_host_networks: welcome.takes_host_networks,
        })
    }

    /// The channel that says whether this node has a manager.
    pub(super) fn connected(&self) -> watch::Sender<bool> {
        self.link.channels.connected.clone()
    }

    /// Serves the session until it fails or `shutdown`.
    pub(super) async fn run(mut self, shutdown: &CancellationToken) -> Result<(), SessionError> {
        let (loads, away) = (Arc::clone(&self.link.channels.loads), self.link.channels.engine_away.clone());
        let beats = tokio::spawn(beat(self.up.clone(), loads, away, self.heartbeat_interval));
        let result = self.exchange(shutdown).await;
        beats.abort();
        result
    }

    async fn exchange(&mut self, shutdown: &CancellationToken) -> Result<(), SessionError> {
        self.link.outbox.resend();
        self.send_table_ack().await?;
        self.send_clashes().await?;
        self.send_host_networks().await?;
        let mut flush_at = self.link.outbox.has_waiting().then(Instant::now);
        let mut resend = interval_at(Instant::now() + RESEND_INTERVAL, RESEND_INTERVAL);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return self.send_statuses().await,
                message = self.down.message() => {
                    let message = message?.ok_or(SessionError::Closed)?;
                    self.receive(message).await?;
                    flush_at = flush_at.or_else(|| self.link.outbox.has_waiting().then(Instant::now));
                }
                status = self.link.channels.statuses.recv() => {
                    let (task, status) = status.ok_or(SessionError::Stopping)?;
                    // An ended task's backends must leave the tables of all nodes at once.
                    let wait = if status.state.is_terminal() { Duration::ZERO } else { BATCH_WAIT };
                    self.tell_others(&task, &status);
                    self.link.outbox.put(task, status);
                    let due = Instant::now() + wait;
                    flush_at = Some(flush_at.map_or(due, |earlier| earlier.min(due)));
                }
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() => {
                    self.send_statuses().await?;
                    flush_at = self.link.outbox.has_waiting().then(Instant::now);
                }
                () = self.link.end_reports.send_pending(&self.link.identity), if self.link.end_reports.is_busy() => {}
                _ = resend.tick(), if self.link.outbox.has_under_way() => {
                    self.link.outbox.resend();
                    flush_at = Some(Instant::now());
                }
                changed = self.link.channels.description.changed() => {
                    return Err(changed.map_or(SessionError::Stopping, |()| SessionError::DescriptionChanged));
                }
                changed = self.link.channels.applied.changed() => {
                    changed.map_err(|_| SessionError::Stopping)?;
                    self.send_table_ack().await?;
                }
                changed = self.link.channels.clashes.changed() => {
                    changed.map_err(|_| SessionError::Stopping)?;
                    self.send_clashes().await?;
                }
                changed = self.link.channels.host_networks.changed() => {
                    changed.map_err(|_| SessionError::Stopping)?;
                    self.send_host_networks().await?;
                }
            }
        }
    }

    async fn receive(&mut self, message: proto::ControlMessage) -> Result<(), SessionError> {
        match message.body {
            Some(Down::Table(table)) => Ok(self.link.take_table(table)?),
            Some(Down::Assignments(assignments)) => self.pass_on(AssignmentChange::read(assignments)).await,
            // Through the same channel as assignments, so that the worker knows a task before its
            // secrets.
            Some(Down::Dependency(message)) => match Delivered::read(message) {
                Some(delivered) => self.pass_on(AssignmentChange::Dependency(delivered)).await,
                None => Err(SessionError::Protocol { problem: "a dependency of an unknown kind came" }),
            },
            Some(Down::Managers(managers)) => {
                self.link.hear_managers(&managers);
                Ok(())
            }
            Some(Down::TrustedCas(told)) => self.link.take_cas(told),
            Some(Down::MemberKeys(keys)) => Ok(self.link.take_member_keys(&keys)?),
            Some(Down::StatusAck(ack)) => {
                let mut numbers = ack.numbers.iter().copied();
                for task in &ack.task_ids {
                    self.link.outbox.acknowledge(&TaskId::from(task.as_str()), numbers.next());
                }
                Ok(())
            }
            Some(Down::Loads(loads)) => {
                self.store_loads(&loads);
                Ok(())
            }
            Some(Down::LogsWanted(wanted)) => {
                let identity = self.link.identity.borrow().clone();
                self.link.log_streams.want(wanted, self.manager, &identity);
                Ok(())
            }
            Some(Down::Welcome(_)) => Err(SessionError::Protocol { problem: "a second welcome came" }),
            None => Err(SessionError::Protocol { problem: "a message of an unknown kind came" }),
        }
    }

    async fn pass_on(&self, change: AssignmentChange) -> Result<(), SessionError> {
        timeout(DEADLINE, self.link.channels.assignments.send(change))
            .await
            .map_err(|_| SessionError::Deadline { step: "pass assignments to the task worker" })?
            .map_err(|_| SessionError::Stopping)
    }

    fn store_loads(&self, received: &proto::Loads) {
        let levels = received.loads.iter().filter_map(|load| {
            let level = u8::try_from(load.load).unwrap_or(LOAD_MAX);
            BackendId::new(load.backend_id).filter(|_| level > 0).map(|id| (id, level))
        });
        self.link.channels.loads.set_if_older(levels, HEARSAY_AGE, std::time::Instant::now());
    }

    /// Reports to the managers without a session of this node that a task has died.
    fn tell_others(&mut self, task: &TaskId, status: &TaskStatus) {
        if !is_sudden(status) {
            return;
        }
        if let Some(written) = write_status((task.clone(), status.clone(), 0)) {
            let link = &mut *self.link;
            let others = link.managers.all().into_iter().filter(|manager| *manager != self.manager);
            link.end_reports.report(others, &link.identity, task, &written.status_json);
        }
    }

    async fn send_statuses(&mut self) -> Result<(), SessionError> {
        let mut waiting: VecDeque<_> =
            self.link.outbox.take(BATCH_LIMIT).into_iter().filter_map(write_status).collect();
        while !waiting.is_empty() {
            let (mut statuses, mut bytes) = (Vec::new(), 0);
            while bytes < BATCH_BYTES
                && let Some(status) = waiting.pop_front()
            {
                bytes += status.status_json.len();
                statuses.push(status);
            }
            send(&self.up, Up::Statuses(proto::TaskStatuses { statuses })).await?;
        }
        Ok(())
    }

    async fn send_table_ack(&mut self) -> Result<(), SessionError> {
        let generation = *self.link.channels.applied.borrow_and_update();
        if generation == 0 {
            return Ok(());
        }
        send(&self.up, Up::TableAck(proto::TableAck { generation })).await
    }

    /// An empty list is sent too: the manager may know of earlier clashes.
    async fn send_clashes(&mut self) -> Result<(), SessionError> {
        let mut clashes = self.link.channels.clashes.borrow_and_update().clone();
        report::clip_clashes(&mut clashes);
        let message = write_clashes(&clashes);
        send(&self.up, Up::PortClashes(message)).await
    }

    async fn send_host_networks(&mut self) -> Result<(), SessionError> {
        let told = self.link.channels.host_networks.borrow_and_update().clone();
        let Some(networks) = told.filter(|_| self.takes_host_networks) else { return Ok(()) };
        let networks = networks.iter().map(ToString::to_string).collect();
        send(&self.up, Up::HostNetworks(proto::HostNetworks { networks })).await
    }
}

/// Encodes the clashes.
fn write_clashes(clashes: &[PortClash]) -> proto::PortClashes {
    let clash = |clash: &PortClash| proto::PortClash {
        protocol: clash.protocol.to_string(),
        port: clash.port.into(),
        reason: clash.reason.clone(),
    };
    proto::PortClashes { clashes: clashes.iter().map(clash).collect() }
}

/// Tables of large clusters exceed gRPC's default limit of 4 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

fn welcome_node(link: &mut Link, welcome: &proto::Welcome) -> Result<(), SessionError> {
    let key = RelayKey::from_bytes(&welcome.relay_key)
        .ok_or(SessionError::Protocol { problem: "the relay key is not of 32 bytes" })?;
    let subnet = if welcome.subnet.is_empty() {
        None
    } else {
        Some(
            welcome
                .subnet
                .parse()
                .map_err(|_| SessionError::Protocol { problem: "the node's subnet can't be read" })?,
        )
    };
    link.welcome(subnet, key);
    Ok(())
}

/// Sends heartbeats until the stream is gone. It is a task of its own, so that a busy session
/// doesn't make the node silent.
async fn beat(
    up: mpsc::Sender<AgentMessage>,
    loads: Arc<Loads>,
    engine_away: watch::Receiver<bool>,
    every: Duration,
) {
    let mut sent = None;
    let mut ticks = interval_at(Instant::now(), every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut heartbeat = proto::Heartbeat {
            engine_away: *engine_away.borrow(),
            unix_ms: chrono::Utc::now().timestamp_millis(),
            ..proto::Heartbeat::default()
        };
        if let Some((measured, levels)) = loads.own_since(sent) {
            sent = Some(measured);
            let load =
                |(id, load): (BackendId, u8)| proto::BackendLoad { backend_id: id.get(), load: load.into() };
            heartbeat.loads = levels.into_iter().map(load).collect();
        }
        let heartbeat = AgentMessage { body: Some(Up::Heartbeat(heartbeat)) };
        if up.send(heartbeat).await.is_err() {
            return;
        }
    }
}

async fn send(up: &mpsc::Sender<AgentMessage>, body: Up) -> Result<(), SessionError> {
    timeout(DEADLINE, up.send(AgentMessage { body: Some(body) }))
        .await
        .map_err(|_| SessionError::Deadline { step: "send to the manager" })?
        .map_err(|_| SessionError::Closed)
}

/// Encodes a status, cut to the sizes that managers accept.
fn write_status((task, mut status, number): (TaskId, TaskStatus, u64)) -> Option<proto::TaskStatus> {
    report::clip_status(&mut status);
    match serde_json::to_string(&status) {
        Ok(status_json) => Some(proto::TaskStatus { task_id: task.to_string(), status_json, number }),
        Err(error) => {
            tracing::error!(%task, error = mesh_runtime::error_chain(&error), "can't encode a task's status");
            None
        }
    }
}
