//! The node's link to the control plane: it joins once, then keeps one session after the other with
//! whichever manager answers.
//!
//! Purpose: managers' messages become the node's view, its assignments and its relay keys; task
//! statuses and loads go up to the managers.
//!
//! Invariants: losing every manager changes nothing on the node; statuses outlive sessions; waits
//! between attempts are jittered and capped at [`RETRY_CAP`].
//!
//! Left to others: running tasks ([`crate::task`]), carrying traffic ([`crate::datapath`],
//! [`crate::proxy`]).

pub mod assignments;
pub mod attach;
pub mod become_manager;
pub mod cache;
pub mod identity;
pub mod join;
pub mod leave;
pub mod managers;
pub mod member_keys;
pub mod place;
pub mod relay_keys;
pub mod renewal;
pub mod token;
pub mod trusted_cas;

mod channel;
mod end_reports;
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
use end_reports::EndReports;
use identity::Identity;
use join::Newcomer;
use log_streams::LogStreams;
use managers::Managers;
use member_keys::{MemberKeys, MemberKeysError};
use mesh_runtime::backoff::Backoff;
use outbox::StatusOutbox;
use relay_keys::{RelayKey, RelayKeys};
use session::{Session, SessionError};
use standing::Standing;
use token::JoinToken;
use trusted_cas::ToldCas;

use crate::lb::loads::Loads;
use crate::task::logs::LogSource;
use crate::view::{NodeView, ViewError};
use mesh_runtime::error_chain;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(3);
/// How long the task worker may take to accept that this node has no tasks any more.
const GIVE_UP_DEADLINE: Duration = Duration::from_secs(5);

/// The channels between the link and the rest of the agent.
pub struct LinkChannels {
    /// The node's description; a change of it begins a new session.
    pub description: watch::Receiver<NodeDescription>,
    /// Observed states of the node's tasks.
    pub statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    /// Takes the node's assignments.
    pub assignments: mpsc::Sender<AssignmentChange>,
    /// The view, which only the link writes.
    pub view: watch::Sender<Arc<NodeView>>,
    /// The generation of the mesh table that carries traffic.
    pub applied: watch::Receiver<u64>,
    /// Published ports on which this node can't listen.
    pub clashes: watch::Receiver<Vec<PortClash>>,
    /// The networks of this node's host; absent until they were read.
    pub host_networks: watch::Receiver<Option<Vec<Ipv4Net>>>,
    /// The relay keys, which only the link writes.
    pub relay_keys: watch::Sender<RelayKeys>,
    /// The CAs that a manager told last; [`renewal`] takes them.
    pub trusted_cas: watch::Sender<Option<ToldCas>>,
    /// Loads of backends: this node's own go up to managers, others' come down.
    pub loads: Arc<Loads>,
    /// The source of tasks' logs.
    pub logs: Arc<dyn LogSource>,
    /// Whether the container engine doesn't answer; heartbeats report it.
    pub engine_away: watch::Receiver<bool>,
    /// Whether a manager has welcomed this node.
    pub connected: watch::Sender<bool>,
    /// Whether the node gave up its tasks and table because its cluster doesn't know it any more.
    pub expelled: watch::Sender<bool>,
    /// How long managers may refuse this node before it gives up its tasks and table.
    pub expulsion_grace: Duration,
}

/// A member's link to its managers.
pub struct Link {
    managers: Managers,
    identity: watch::Receiver<Identity>,
    channels: LinkChannels,
    outbox: StatusOutbox,
    log_streams: LogStreams,
    end_reports: EndReports,
    standing: Standing,
    /// Why the last attempt failed; a repeated reason is logged at level debug only.
    last_failure: Option<String>,
}

impl Link {
    /// Makes a link for `identity` to `managers`, idle until [`Link::run`]. The next connection
    /// uses a renewed identity.
    pub fn new(
        managers: impl Into<Managers>,
        identity: watch::Receiver<Identity>,
        channels: LinkChannels,
    ) -> Self {
        let log_streams = LogStreams::new(Arc::clone(&channels.logs));
        Self {
            managers: managers.into(),
            identity,
            channels,
            outbox: StatusOutbox::default(),
            log_streams,
            end_reports: EndReports::default(),
            standing: Standing::default(),
            last_failure: None,
        }
    }

    /// Keeps a session with one manager or another until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        let mut lost = None;
        loop {
            for manager in in_turn(self.managers.all(), lost) {
                if self.serve(manager, &shutdown).await {
                    backoff.reset();
                    lost = Some(manager);
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

    /// Serves one session with one manager; returns whether the manager welcomed this node.
    async fn serve(&mut self, manager: SocketAddr, shutdown: &CancellationToken) -> bool {
        let session = match shutdown.run_until_cancelled(self.open(manager)).await {
            Some(Ok(session)) => session,
            Some(Err(error)) => {
                self.hear_refusal(&error).await;
                let failure = format!("{manager}: {}", error_chain(&error));
                if self.last_failure.as_ref() == Some(&failure) {
                    tracing::debug!(error = failure, "still can't open a session");
                } else {
                    tracing::warn!(error = failure, "can't open a session; will try again");
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
            Err(SessionError::DescriptionChanged) => {
                tracing::info!("the node's description changed: say hello again");
            }
            Err(error) => {
                tracing::warn!(%manager, error = %error_chain(&error), "the session ended");
                self.hear_refusal(&error).await;
            }
        }
        true
    }

    /// Gives tasks and table up if managers have refused this node as no member for long enough.
    async fn hear_refusal(&mut self, error: &SessionError) {
        if !error.is_no_member() || !self.standing.refused(Instant::now(), self.channels.expulsion_grace) {
            return;
        }
        if *self.channels.expelled.borrow() {
            return;
        }
        tracing::error!(
            "this node was removed from its cluster: it ends its tasks and answers on no published port any more; to join \
             again, remove its identity file and start the agent with a join token"
        );
        self.channels.view.send_modify(|view| *view = Arc::new(view.emptied()));
        let nothing = AssignmentChange::Full(Vec::new());
        let sent = tokio::time::timeout(GIVE_UP_DEADLINE, self.channels.assignments.send(nothing)).await;
        if let Ok(Ok(())) = sent {
            self.channels.expelled.send_replace(true);
        } else {
            // Managers keep refusing, so this is tried again.
            tracing::error!("can't end the tasks of this node; will try again");
        }
    }

    /// Records that a manager welcomed this node; the manager sends it everything anew.
    fn note_welcome(&mut self) {
        self.standing.welcomed();
        self.channels.expelled.send_replace(false);
    }

    async fn open(&mut self, manager: SocketAddr) -> Result<Session<'_>, SessionError> {
        let identity = self.identity.borrow().clone();
        let channel = channel::connect_member(manager, &identity).await?;
        Session::open(self, manager, channel).await
    }

    /// The first message of a session. It names a generation only if all of its table is applied,
    /// as the manager may then send only what changed since.
    fn hello(&mut self) -> Result<proto::Hello, serde_json::Error> {
        let view = self.channels.view.borrow();
        let applied = *self.channels.applied.borrow();
        let mut description = self.channels.description.borrow_and_update().clone();
        if report::clip_description(&mut description) {
            tracing::warn!(
                "this node's engine says more than managers take: some of its labels or plugins are left out"
            );
        }
        Ok(proto::Hello {
            description_json: serde_json::to_string(&description)?,
            address: view.address.to_string(),
            table_generation: if applied == view.generation { applied } else { 0 },
            takes_managers: true,
            takes_cas: true,
        })
    }

    fn welcome(&mut self, subnet: Option<Ipv4Net>, key: RelayKey) {
        self.note_welcome();
        self.channels.relay_keys.send_if_modified(|keys| {
            let rotated = keys.rotated(key);
            let changed = rotated != *keys;
            *keys = rotated;
            changed
        });
        self.channels.view.send_if_modified(|view| {
            let changed = subnet.is_some() && view.subnet != subnet;
            if changed {
                Arc::make_mut(view).subnet = subnet;
            }
            changed
        });
    }

    fn hear_managers(&self, told: &proto::Managers) {
        self.managers.learn(&told.addresses);
        self.managers.hear_role(&told.role);
    }

    fn take_member_keys(&mut self, received: &proto::MemberKeys) -> Result<(), MemberKeysError> {
        let keys = MemberKeys::new(&received.secrets, received.cookies_demanded)?;
        let relay_keys = keys.relay_keys();
        self.channels.relay_keys.send_if_modified(|present| {
            let changed = *present != relay_keys;
            *present = relay_keys;
            changed
        });
        self.channels.view.send_if_modified(|view| {
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
        let next = self.channels.view.borrow().apply(&table)?;
        tracing::debug!(
            generation = next.generation,
            base = table.base_generation,
            backends = next.backends.len(),
            "received a mesh table"
        );
        self.channels.view.send_replace(Arc::new(next));
        Ok(())
    }
}

/// Asks one manager after the other to admit this node, until one does or `shutdown`.
pub async fn join_any(
    managers: &[SocketAddr],
    token: &JoinToken,
    newcomer: &Newcomer,
    shutdown: &CancellationToken,
) -> Option<Identity> {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        for manager in managers {
            match shutdown.run_until_cancelled(join::join(*manager, token, newcomer.clone())).await? {
                Ok(identity) => return Some(identity),
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "can't join the cluster; will try again");
                }
            }
        }
        let wait = backoff.pause(&mut rand::rng());
        shutdown.run_until_cancelled(tokio::time::sleep(wait)).await?;
    }
}

/// The managers in the order in which they are tried: at random, but the one whose session ended
/// last comes at the end. If its machine is dead, only a deadline shows it.
fn in_turn(mut managers: Vec<SocketAddr>, lost: Option<SocketAddr>) -> Vec<SocketAddr> {
    managers.shuffle(&mut rand::rng());
    managers.sort_by_key(|manager| Some(*manager) == lost);
    managers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_that_was_lost_is_tried_last() {
        let at = |last: u8| SocketAddr::from(([10, 0, 0, last], 2377));
        for _ in 0..20 {
            let order = in_turn(vec![at(1), at(2), at(3)], Some(at(2)));
            assert_eq!((order.len(), order[2]), (3, at(2)), "{order:?}");
        }
        assert_eq!(in_turn(vec![at(1)], Some(at(1))), [at(1)], "the only one");
    }
}
