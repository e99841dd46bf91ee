//! Who has a session with this manager.
//!
//! Invariants: a node has one session here, the newest; only a member's certificate opens one; a node that this manager counts as
//! heard and that has no session is reported silent, however its session was lost.
//!
//! Left to others: the session itself ([`super::session`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use mesh_admission::door::Door;
use mesh_admission::figures::report::{SESSIONS_A_SECOND, SESSIONS_AT_ONCE};
use mesh_admission::rate::Rates;
use mesh_admission::refusals::Reason;
use mesh_state::ids::NodeId;
use mesh_state::keys;
use mesh_state::node::NodeState;
use mesh_state::proto::node_service_server::NodeService;
use mesh_state::proto::{AgentMessage, ControlMessage, LogBatch, LogsTaken, RenewRequest, RenewResponse};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;
use zeroize::Zeroizing;

use super::loads::Loads;
use super::logs;
use super::mailbox::Heard;
use super::membership::Admission;
use super::recorder::Reports;
use super::session::Session;
use crate::ca;
use crate::context::ApiContext;
use crate::mesh_table::Table;

/// Messages that may wait for a slow node.
const OUTGOING_MESSAGES: usize = 64;
/// Nodes get so long to come back after this manager began, before they count as silent.
const RETURN_GRACE: Duration = Duration::from_secs(3);
/// Nodes whose sessions are counted.
const NODES_REMEMBERED: usize = 16_384;
/// How often nodes without a session are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// What sessions share.
pub struct Sessions {
    /// The cluster.
    pub context: ApiContext,
    /// The newest mesh table.
    pub tables: watch::Receiver<Arc<Table>>,
    /// Where nodes' reports go.
    pub reports: Reports,
    /// What nodes measured of their backends.
    pub loads: Arc<Loads>,
    /// Authenticates relay preambles between members.
    pub relay_key: Zeroizing<Vec<u8>>,
    /// The node service's admission.
    pub door: Arc<Door>,
    opened: Mutex<Rates<NodeId>>,
    tracker: TaskTracker,
    pub(super) shutdown: CancellationToken,
    live: Mutex<BTreeMap<NodeId, Arc<CancellationToken>>>,
}

impl Sessions {
    /// No sessions yet. They end with `shutdown` and are tracked by `tracker`.
    pub fn new(
        context: ApiContext,
        tables: watch::Receiver<Arc<Table>>,
        reports: Reports,
        relay_key: Zeroizing<Vec<u8>>,
        door: Arc<Door>,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            context,
            tables,
            reports,
            loads: Arc::default(),
            relay_key,
            door,
            opened: Mutex::new(Rates::new(SESSIONS_A_SECOND, SESSIONS_AT_ONCE, NODES_REMEMBERED)),
            tracker,
            shutdown,
            live: Mutex::default(),
        }
    }

    /// Reports nodes silent that count as heard here and have no session, until shutdown.
    pub async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + RETURN_GRACE, SWEEP_PERIOD);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.report_absent(),
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    fn report_absent(&self) {
        let snapshot = self.context.snapshot();
        let live = self.live();
        for (node, liveness) in &snapshot.liveness {
            let ours = liveness.state == NodeState::Ready && liveness.manager == self.context.manager_name;
            if ours && !live.contains_key(node) {
                let heard = Heard { state: NodeState::Silent, since: Utc::now() };
                self.reports.leave(|mailbox| mailbox.put_heard(node.clone(), heard));
            }
        }
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<CancellationToken>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session of `node`; what it says comes out of the receiver.
    fn open(
        shared: &Arc<Self>,
        node: NodeId,
        incoming: Streaming<AgentMessage>,
    ) -> mpsc::Receiver<Result<ControlMessage, Status>> {
        let token = shared.enter(&node);
        let (outgoing, messages) = mpsc::channel(OUTGOING_MESSAGES);
        let session = Session::new(node.clone(), shared, outgoing, Arc::clone(&token));
        let sessions = Arc::clone(shared);
        shared.tracker.spawn(async move {
            let was_heard = session.run(incoming).await;
            let newest = sessions.leave(&node, &token);
            if newest && was_heard && !sessions.shutdown.is_cancelled() {
                info!(%node, "is silent: its session ended");
                let heard = Heard { state: NodeState::Silent, since: Utc::now() };
                sessions.reports.leave(|mailbox| mailbox.put_heard(node, heard));
            }
        });
        messages
    }

    /// Refuses a node that opens sessions too often: each one is logged, and begins with whole tables.
    fn count_opened(&self, node: &NodeId) -> Result<(), Status> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.take(node, std::time::Instant::now()) {
            return Ok(());
        }
        self.door.refuse(Reason::Rate, &format_args!("sessions of node {node}"));
        Err(Status::resource_exhausted("this node opens sessions too often: it is to wait a few seconds"))
    }

    /// Makes room for a new session of `node`: the one before ends.
    fn enter(&self, node: &NodeId) -> Arc<CancellationToken> {
        let token = Arc::new(self.shutdown.child_token());
        if let Some(before) = self.live().insert(node.clone(), Arc::clone(&token)) {
            before.cancel();
        }
        token
    }

    /// Forgets a session; `true` if no newer one took its place.
    fn leave(&self, node: &NodeId, token: &Arc<CancellationToken>) -> bool {
        let mut live = self.live();
        let newest = live.get(node).is_some_and(|current| Arc::ptr_eq(current, token));
        if newest {
            live.remove(node);
        }
        newest
    }

    /// Refuses a node that is no member. The snapshot may be behind a node that joined through another manager just now.
    async fn check_member(&self, node: &NodeId) -> Result<(), Status> {
        if self.context.snapshot().nodes.contains_key(node) {
            return Ok(());
        }
        match self.context.store.get(&keys::node(node)).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(not_a_member(node)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}

/// The answer to a node that was removed, or never was.
pub(super) fn not_a_member(node: &NodeId) -> Status {
    Status::permission_denied(format!(
        "node {node} is no member of this cluster: remove its identity file and let it join again with a token"
    ))
}

/// The gRPC face of [`Sessions`], and of what members renew their certificates with.
pub struct SessionService(pub Arc<Sessions>, pub Arc<Admission>);

#[tonic::async_trait]
impl NodeService for SessionService {
    type SessionStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = self.member(&request).await?;
        self.0.count_opened(&node)?;
        let messages = Sessions::open(&self.0, node, request.into_inner());
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<LogBatch>>,
    ) -> Result<Response<LogsTaken>, Status> {
        let node = self.member(&request).await?;
        Ok(Response::new(logs::take(&self.0.context.logs, node, request.into_inner()).await?))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let node = self.member(&request).await?;
        self.1.renew(&node, &request.get_ref().csr_pem).await
    }
}

impl SessionService {
    /// The member that calls.
    async fn member<T: Sync>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let certificates = request.peer_certs();
        let leaf = certificates.as_ref().and_then(|chain| chain.first());
        let node = leaf.and_then(ca::node_of).ok_or_else(|| {
            Status::unauthenticated("a session needs the node's certificate: join the cluster first")
        })?;
        self.0.check_member(&node).await?;
        if let Some(address) = request.remote_addr() {
            self.0.door.prove(address);
        }
        Ok(node)
    }
}
