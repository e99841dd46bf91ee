//! The sessions of nodes with this manager.
//!
//! Invariants: a node has one session here, the newest; only a member's certificate opens one; a
//! node that counts as heard by this manager and has no session is reported silent, however its
//! session was lost.
//!
//! Left to others: the session itself ([`super::session`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use mesh_admission::figures::report::{SESSIONS_A_SECOND, SESSIONS_AT_ONCE};
use mesh_admission::rate::Rates;
use mesh_admission::refusals::Reason;
use mesh_state::ids::NodeId;
use mesh_state::keys;
use mesh_state::node::NodeState;
use mesh_state::proto::node_service_server::NodeService;
use mesh_state::proto::{
    AgentMessage, AttachRequest, AttachResponse, BecomeManagerRequest, BecomeManagerResponse, ControlMessage,
    DetachRequest, DetachResponse, EndsTaken, LeaveRequest, LeaveResponse, LogBatch, LogsTaken, RenewRequest,
    RenewResponse, TaskStatuses,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use super::attachments;
use super::end::{no_cluster, not_a_member};
use super::ends;
use super::leaving;
use super::logs;
use super::mailbox::Heard;
use super::membership::Admission;
use super::session::Session;
use super::session_context::SessionContext;
use crate::ca;
use crate::ca::root::issuer_of;
use crate::feed::clocks::Peer;

/// Messages queued for a slow node.
const OUTGOING_MESSAGES: usize = 64;
/// How long after this manager's start nodes may take to reconnect before they count as silent.
const RETURN_GRACE: Duration = Duration::from_secs(3);
/// The most nodes whose new sessions are counted for the rate limit.
const NODES_REMEMBERED: usize = 16_384;
/// How often nodes without a session are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// The sessions of this manager.
pub struct Sessions {
    pub(super) context: SessionContext,
    opened: Mutex<Rates<NodeId>>,
    tracker: TaskTracker,
    live: Mutex<BTreeMap<NodeId, Arc<CancellationToken>>>,
}

impl Sessions {
    /// No sessions yet. `tracker` tracks those that come.
    pub fn new(context: SessionContext, tracker: TaskTracker) -> Self {
        Self {
            context,
            opened: Mutex::new(Rates::new(SESSIONS_A_SECOND, SESSIONS_AT_ONCE, NODES_REMEMBERED)),
            tracker,
            live: Mutex::default(),
        }
    }

    /// Reports nodes silent that count as heard by this manager and have no session, until
    /// shutdown.
    pub async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + RETURN_GRACE, SWEEP_PERIOD);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.report_absent(),
                () = self.context.shutdown.cancelled() => return,
            }
        }
    }

    fn report_absent(&self) {
        let snapshot = self.context.cluster.snapshot();
        let live = self.live();
        for (node, liveness) in &snapshot.liveness {
            let ours =
                liveness.state == NodeState::Ready && liveness.manager == self.context.cluster.manager_name;
            if ours && !live.contains_key(node) {
                let heard = Heard { state: NodeState::Silent, since: Utc::now() };
                self.context.reports.leave(|mailbox| mailbox.put_heard(node.clone(), heard));
            }
        }
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<CancellationToken>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session of `node`, whose certificate the CA `issuer` signed; the receiver yields the
    /// session's messages for the node.
    fn open(
        shared: &Arc<Self>,
        node: NodeId,
        issuer: String,
        incoming: Streaming<AgentMessage>,
    ) -> mpsc::Receiver<Result<ControlMessage, Status>> {
        let place = Place::take(Arc::clone(shared), node.clone());
        let (outgoing, messages) = mpsc::channel(OUTGOING_MESSAGES);
        let session = Session::new(node, issuer, &shared.context, outgoing, Arc::clone(&place.token));
        shared.tracker.spawn(async move {
            let was_heard = session.run(incoming).await;
            place.leave(was_heard);
        });
        messages
    }

    /// Ends the node's session, if it has one here.
    fn end(&self, node: &NodeId) {
        if let Some(token) = self.live().get(node) {
            token.cancel();
        }
    }

    /// Refuses a node that opens sessions too often: each session is logged, and begins with whole
    /// tables.
    fn count_opened(&self, node: &NodeId) -> Result<(), Status> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.take(node, std::time::Instant::now()) {
            return Ok(());
        }
        self.context.door.refuse(Reason::Rate, &format_args!("sessions of node {node}"));
        Err(Status::resource_exhausted("this node opens sessions too often: it must wait a few seconds"))
    }

    /// Refuses a node that is no member. The snapshot may not have a node yet that joined through
    /// another manager just now.
    async fn check_member(&self, node: &NodeId) -> Result<(), Status> {
        if self.context.cluster.snapshot().nodes.contains_key(node) {
            return Ok(());
        }
        match self.context.cluster.store.get(&keys::node(node)).await {
            Ok(Some(_)) => Ok(()),
            // A node that is refused as no member gives up its tasks, so a manager without a
            // cluster's record must not refuse it.
            Ok(None) if self.context.cluster.snapshot().cluster.is_none() => Err(no_cluster()),
            Ok(None) => Err(not_a_member(node)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}

/// A session's entry among those of this manager. Dropping it ends the session's entry, also after
/// a panic.
struct Place {
    sessions: Arc<Sessions>,
    node: NodeId,
    token: Arc<CancellationToken>,
    /// Whether the node was heard when the session ended; true until the session says otherwise.
    was_heard: bool,
}

impl Place {
    /// Registers a new session of `node` and ends the one before.
    fn take(sessions: Arc<Sessions>, node: NodeId) -> Self {
        let token = Arc::new(sessions.context.shutdown.child_token());
        if let Some(before) = sessions.live().insert(node.clone(), Arc::clone(&token)) {
            before.cancel();
        }
        Self { sessions, node, token, was_heard: true }
    }

    /// Ends the session in order, and says whether its node was heard at the end.
    fn leave(mut self, was_heard: bool) {
        self.was_heard = was_heard;
    }

    /// Removes the entry; `true` if no newer session has replaced it.
    fn forget(&self) -> bool {
        let mut live = self.sessions.live();
        let newest = live.get(&self.node).is_some_and(|current| Arc::ptr_eq(current, &self.token));
        if newest {
            live.remove(&self.node);
            // Under the lock: a newer session, whose hello must stay, waits for it.
            self.sessions.context.reports.leave(|mailbox| mailbox.drop_said(&self.node));
            self.sessions.context.cluster.clocks.forget(&Peer::Node(self.node.clone()));
        }
        newest
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.forget() && self.was_heard && !self.sessions.context.shutdown.is_cancelled() {
            info!(node = %self.node, "is silent: its session ended");
            let heard = Heard { state: NodeState::Silent, since: Utc::now() };
            self.sessions.context.reports.leave(|mailbox| mailbox.put_heard(self.node.clone(), heard));
        }
    }
}

/// The gRPC service of [`Sessions`], and of certificate renewal.
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
        let issuer = self.issuer(&request);
        let messages = Sessions::open(&self.0, node, issuer, request.into_inner());
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<LogBatch>>,
    ) -> Result<Response<LogsTaken>, Status> {
        let node = self.member(&request).await?;
        Ok(Response::new(logs::take(&self.0.context.cluster.logs, node, request.into_inner()).await?))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let node = self.member(&request).await?;
        self.1.renew(&node, &request.get_ref().csr_pem).await
    }

    async fn become_manager(
        &self,
        request: Request<BecomeManagerRequest>,
    ) -> Result<Response<BecomeManagerResponse>, Status> {
        let node = self.member(&request).await?;
        self.1.become_manager(&node, request.into_inner()).await
    }

    async fn report_ends(&self, request: Request<TaskStatuses>) -> Result<Response<EndsTaken>, Status> {
        let node = self.member(&request).await?;
        ends::take(&self.0.context.reports, &self.0.context.cluster.snapshot(), &node, request.into_inner())?;
        Ok(Response::new(EndsTaken {}))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let node = self.member(&request).await?;
        let cluster = &self.0.context.cluster;
        let given = attachments::attach(cluster, &node, Utc::now(), request.into_inner());
        tokio::select! {
            given = given => Ok(Response::new(given?)),
            () = self.0.context.shutdown.cancelled() => Err(Status::unavailable("this manager stops")),
        }
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        let node = self.member(&request).await?;
        let cluster = &self.0.context.cluster;
        Ok(Response::new(attachments::detach(cluster, &node, request.get_ref()).await?))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let node = self.member(&request).await?;
        self.0.end(&node);
        leaving::record(&self.0.context.cluster, &self.0.context.reports, &node, Utc::now()).await?;
        Ok(Response::new(LeaveResponse {}))
    }
}

impl SessionService {
    /// The digest of the CA that signed the caller's certificate. TLS has verified that it is one
    /// of those that were trusted then; empty if it no longer is.
    fn issuer<T>(&self, request: &Request<T>) -> String {
        let certificates = request.peer_certs();
        let leaf = certificates.as_ref().and_then(|chain| chain.first());
        let trust = self.1.trust();
        let issuer = leaf.and_then(|leaf| issuer_of(&trust.roots, leaf));
        issuer.unwrap_or_default().to_owned()
    }

    /// The id of the member that calls, from its certificate.
    async fn member<T: Sync>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let certificates = request.peer_certs();
        let leaf = certificates.as_ref().and_then(|chain| chain.first());
        let node = leaf.and_then(ca::node_of).ok_or_else(|| {
            Status::unauthenticated("a session needs the node's certificate: join the cluster first")
        })?;
        self.0.check_member(&node).await?;
        if let Some(address) = request.remote_addr() {
            self.0.context.door.prove(address);
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use mesh_admission::door::Door;
    use mesh_admission::figures::Listener;
    use mesh_admission::refusals::Refusals;
    use mesh_state::store::MemoryStore;
    use tokio::sync::watch;
    use zeroize::Zeroizing;

    use super::*;
    use crate::context::ApiContext;
    use crate::fixtures::World;
    use crate::node_service::mailbox::Mailbox;
    use crate::node_service::mesh_table::Table;
    use crate::node_service::recorder::Reports;
    use crate::own_node::OwnNode;
    use crate::seal::Sealer;

    /// Sessions of manager m1, which hears node `a`.
    fn sessions(world: World) -> Arc<Sessions> {
        let directory = tempfile::tempdir().unwrap();
        let (_, mut feed) = crate::feed::watch::feed();
        feed.snapshots = watch::channel(Arc::new(world.snapshot)).1;
        let context = ApiContext {
            store: Arc::new(MemoryStore::new()),
            feed,
            manager_name: "m1".to_owned(),
            own_node: OwnNode::load(directory.path()).unwrap(),
            advertise: [127, 0, 0, 1].into(),
            node_port: 0,
            sealer: Arc::new(Sealer::new(&Zeroizing::new([7; 32]))),
            clocks: Arc::default(),
            logs: Arc::default(),
            at_rest: watch::channel(i64::MAX).1,
            certificate_life_min: ca::MEMBER_LIFE_MIN,
            stopping: CancellationToken::new(),
            orders: None,
        };
        let refusals = Refusals::register(&prometheus::Registry::new()).unwrap();
        let door = Door::new(Listener::Nodes, Listener::Nodes.figures(), refusals);
        let context = SessionContext {
            cluster: context,
            tables: watch::channel(Arc::new(Table::default())).1,
            reports: Reports::default(),
            loads: Arc::default(),
            relay_key: Zeroizing::new(Vec::new()),
            door,
            shutdown: CancellationToken::new(),
        };
        Arc::new(Sessions::new(context, TaskTracker::new()))
    }

    /// Whether a report of the node's silence is queued.
    fn reports_silence(sessions: &Sessions) -> bool {
        let mut taken = Mailbox::default();
        let mut seen = false;
        sessions.context.reports.leave(|mailbox| {
            seen = !mailbox.is_empty();
            std::mem::swap(mailbox, &mut taken);
        });
        seen
    }

    #[tokio::test]
    async fn a_session_that_panics_loses_its_entry_and_its_node_is_silent() {
        let sessions = sessions(World::with_nodes(["a"]));
        let place = Place::take(Arc::clone(&sessions), "a".into());
        let session = tokio::spawn(async move {
            let _place = place;
            panic!("a session panics");
        });
        assert!(session.await.expect_err("it panics").is_panic());
        assert!(sessions.live().is_empty(), "the dead session still has its entry");
        assert!(reports_silence(&sessions), "no report says that the node is silent");
    }

    #[tokio::test]
    async fn a_session_that_a_newer_one_replaced_reports_no_silence() {
        let sessions = sessions(World::with_nodes(["a"]));
        let (older, newer) =
            (Place::take(Arc::clone(&sessions), "a".into()), Place::take(Arc::clone(&sessions), "a".into()));
        assert!(older.token.is_cancelled() && !newer.token.is_cancelled());
        drop(older);
        assert!(!reports_silence(&sessions), "the node has a session");
        newer.leave(false);
        assert!(!reports_silence(&sessions), "its silence was reported by the session itself");
    }
}
