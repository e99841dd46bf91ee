//! The node's link to the control plane: join once, then one session after the other with whichever manager answers.
//!
//! Purpose: what managers say becomes the node's view, its assignments and its relay keys; what the node does goes up to them.
//!
//! Invariants: losing every manager changes nothing on the node; statuses outlive sessions; waits between tries are jittered
//! and capped at [`RETRY_CAP`].
//!
//! Left to others: running tasks (`task`), carrying traffic (`datapath`, `proxy`).

pub mod assignments;
pub mod cache;
pub mod identity;
pub mod join;
pub mod member_keys;
pub mod relay_keys;
pub mod renewal;
pub mod token;

mod channel;
mod ends;
mod log_streams;
mod outbox;
mod own_clock;
mod pinned_ca;
mod session;
mod standing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_state::ids::TaskId;
use mesh_state::node::{NodeDescription, PortClash};
use mesh_state::proto;
use mesh_state::report;
use mesh_state::task::TaskStatus;
use rand::seq::SliceRandom;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use assignments::AssignmentChange;
use identity::Identity;
use log_streams::LogStreams;
use member_keys::{MemberKeys, MemberKeysError};
use mesh_runtime::backoff::Backoff;
use outbox::StatusOutbox;
use relay_keys::{RelayKey, RelayKeys};
use session::{Session, SessionError};
use standing::Standing;
use token::JoinToken;

use crate::lb::loads::Loads;
use crate::task::logs::LogSource;
use crate::view::{NodeView, ViewError};
use mesh_runtime::error_chain;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(3);
/// How long the task worker may take to hear that nothing is this node's any more.
const GIVE_UP_DEADLINE: Duration = Duration::from_secs(5);

/// The link's ends towards the rest of the agent.
pub struct Ends {
    /// What the node says of itself; a change is told by a new session.
    pub description: watch::Receiver<NodeDescription>,
    /// Observed states of its tasks.
    pub statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    /// Where its assignments go.
    pub assignments: mpsc::Sender<AssignmentChange>,
    /// The view, which the link alone writes.
    pub view: watch::Sender<Arc<NodeView>>,
    /// The generation that carries traffic.
    pub applied: watch::Receiver<u64>,
    /// Published ports that this node can't listen on.
    pub clashes: watch::Receiver<Vec<PortClash>>,
    /// The relay keys, which the link alone writes.
    pub relay_keys: watch::Sender<RelayKeys>,
    /// Loads: this node's own go up, others' come down.
    pub loads: Arc<Loads>,
    /// Where tasks' logs are read.
    pub logs: Arc<dyn LogSource>,
    /// Whether the engine doesn't answer; heartbeats tell.
    pub engine_away: watch::Receiver<bool>,
    /// Whether a manager has welcomed this node.
    pub connected: watch::Sender<bool>,
    /// Whether the node gave up what it had, as its cluster doesn't know it any more.
    pub expelled: watch::Sender<bool>,
    /// How long managers may refuse this node before it gives up what it has.
    pub expulsion_grace: Duration,
}

/// A member's link to its managers.
pub struct Link {
    managers: Vec<SocketAddr>,
    identity: watch::Receiver<Identity>,
    ends: Ends,
    outbox: StatusOutbox,
    log_streams: LogStreams,
    ends_told: ends::Ends,
    standing: Standing,
    /// Why the last try failed, so that a long outage fills no log.
    last_failure: Option<String>,
}

impl Link {
    /// A link for `identity` to `managers`, idle until [`Link::run`]. A renewed identity serves for the next connection.
    pub fn new(managers: Vec<SocketAddr>, identity: watch::Receiver<Identity>, ends: Ends) -> Self {
        let log_streams = LogStreams::new(Arc::clone(&ends.logs));
        Self {
            managers,
            identity,
            ends,
            outbox: StatusOutbox::default(),
            log_streams,
            ends_told: ends::Ends::default(),
            standing: Standing::default(),
            last_failure: None,
        }
    }

    /// Keeps a session with one manager or another until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        loop {
            let mut managers = self.managers.clone();
            managers.shuffle(&mut rand::rng());
            for manager in managers {
                if self.serve(manager, &shutdown).await {
                    backoff.reset();
                }
                if shutdown.is_cancelled() {
                    return;
                }
            }
            let wait = backoff.pause(&mut rand::rng());
            if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// One session with one manager; whether it welcomed this node.
    async fn serve(&mut self, manager: SocketAddr, shutdown: &CancellationToken) -> bool {
        let session = match shutdown.run_until_cancelled(self.open(manager)).await {
            Some(Ok(session)) => session,
            Some(Err(error)) => {
                self.hear_refusal(&error).await;
                let failure = format!("{manager}: {}", error_chain(&error));
                if self.last_failure.as_ref() == Some(&failure) {
                    tracing::debug!(error = failure, "open a session, again");
                } else {
                    tracing::warn!(error = failure, "open a session; will try again");
                    self.last_failure = Some(failure);
                }
                return false;
            }
            None => return false,
        };
        tracing::info!(%manager, "a manager has welcomed this node");
        let connected = session.connected();
        connected.send_replace(true);
        let result = session.run(shutdown).await;
        connected.send_replace(false);
        self.last_failure = None;
        match result {
            Ok(()) => {}
            Err(SessionError::Redescribed) => {
                tracing::info!("the node's description changed: say hello again");
            }
            Err(error) => {
                tracing::warn!(%manager, error = %error_chain(&error), "the session ended");
                self.hear_refusal(&error).await;
            }
        }
        true
    }

    /// Gives tasks and table up, if a manager has been refusing this node as no member for long enough.
    async fn hear_refusal(&mut self, error: &SessionError) {
        if !error.is_no_member() || !self.standing.refused(Instant::now(), self.ends.expulsion_grace) {
            return;
        }
        if *self.ends.expelled.borrow() {
            return;
        }
        tracing::error!(
            "this node was removed from its cluster: it ends its tasks and answers on no published port any more; to join \
             again, remove its identity file and start the agent with a join token"
        );
        self.ends.view.send_modify(|view| *view = Arc::new(view.emptied()));
        let nothing = AssignmentChange::Full(Vec::new());
        let sent = tokio::time::timeout(GIVE_UP_DEADLINE, self.ends.assignments.send(nothing)).await;
        if let Ok(Ok(())) = sent {
            self.ends.expelled.send_replace(true);
        } else {
            // Managers go on refusing: this is tried again.
            tracing::error!("end the tasks of this node; will try again");
        }
    }

    /// A manager welcomed this node, and sends it everything anew.
    fn note_welcome(&mut self) {
        self.standing.welcomed();
        self.ends.expelled.send_replace(false);
    }

    async fn open(&mut self, manager: SocketAddr) -> Result<Session<'_>, SessionError> {
        let identity = self.identity.borrow().clone();
        let channel = channel::connect_member(manager, &identity).await?;
        Session::open(self, manager, channel).await
    }

    /// The first message of a session. A manager may send only what changed since the named generation, so it is named only if
    /// all of it is applied.
    fn hello(&mut self) -> Result<proto::Hello, serde_json::Error> {
        let view = self.ends.view.borrow();
        let applied = *self.ends.applied.borrow();
        let mut description = self.ends.description.borrow_and_update().clone();
        if report::clip_description(&mut description) {
            tracing::warn!(
                "this node's engine says more than managers take: some of its labels or plugins are left out"
            );
        }
        Ok(proto::Hello {
            description_json: serde_json::to_string(&description)?,
            address: view.address.to_string(),
            table_generation: if applied == view.generation { applied } else { 0 },
        })
    }

    fn welcome(&mut self, subnet: Option<Ipv4Net>, key: RelayKey) {
        self.note_welcome();
        self.ends.relay_keys.send_if_modified(|keys| {
            let rotated = keys.rotated(key);
            let changed = rotated != *keys;
            *keys = rotated;
            changed
        });
        self.ends.view.send_if_modified(|view| {
            let changed = subnet.is_some() && view.subnet != subnet;
            if changed {
                Arc::make_mut(view).subnet = subnet;
            }
            changed
        });
    }

    fn take_member_keys(&mut self, told: &proto::MemberKeys) -> Result<(), MemberKeysError> {
        let keys = MemberKeys::new(&told.secrets, told.cookies_demanded)?;
        let relay_keys = keys.relay_keys();
        self.ends.relay_keys.send_if_modified(|present| {
            let changed = *present != relay_keys;
            *present = relay_keys;
            changed
        });
        self.ends.view.send_if_modified(|view| {
            let changed = view.member_keys != keys;
            if changed {
                Arc::make_mut(view).member_keys = keys;
            }
            changed
        });
        Ok(())
    }

    fn take_table(&mut self, mut table: proto::MeshTable) -> Result<(), ViewError> {
        table.committed_unix_ms = own_clock::committed_ms(&table, chrono::Utc::now().timestamp_millis());
        let next = self.ends.view.borrow().apply(&table)?;
        tracing::debug!(
            generation = next.generation,
            base = table.base_generation,
            backends = next.backends.len(),
            "a mesh table came"
        );
        self.ends.view.send_replace(Arc::new(next));
        Ok(())
    }
}

/// Asks one manager after the other to admit this node, until one does or `shutdown`.
pub async fn join_any(
    managers: &[SocketAddr],
    token: &JoinToken,
    hostname: &str,
    shutdown: &CancellationToken,
) -> Option<Identity> {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        for manager in managers {
            match shutdown.run_until_cancelled(join::join(*manager, token, hostname)).await? {
                Ok(identity) => return Some(identity),
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "join the cluster; will try again");
                }
            }
        }
        let wait = backoff.pause(&mut rand::rng());
        shutdown.run_until_cancelled(tokio::time::sleep(wait)).await?;
    }
}
