//! One node's session: sends the node what it must know, and takes its reports.
//!
//! Invariants: the welcome is the first message and waits for the node's subnet; assignments and
//! tables are sent whole once, then as deltas to what was sent; a status is acknowledged when the
//! store is seen to hold it; the node counts as heard while it sends messages.
//!
//! Left to others: writing reports ([`super::recorder`]).

mod hearing;
mod managers;
mod member_keys;
mod reported;
mod trusted_cas;
mod unacknowledged;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use mesh_admission::door::Door;
use mesh_admission::figures::report::{MESSAGES_A_SECOND, MESSAGES_AT_ONCE};
use mesh_admission::rate::Bucket;
use mesh_admission::text::Outside;
use mesh_state::Timestamp;
use mesh_state::cluster::Sealed;
use mesh_state::ids::NodeId;
use mesh_state::node::{NodeDescription, NodeState};
use mesh_state::proto::agent_message::Body as Up;
use mesh_state::proto::control_message::Body as Down;
use mesh_state::proto::{self, AgentMessage, ControlMessage, Hello, TrustedCas, Welcome};
use mesh_state::report;
use mesh_state::store::generation_of;
use mesh_state::task::RegistryAuth;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::address;
use super::assignments::{self, SentAssignments};
use super::deliveries::Deliveries;
use super::end::{SEND_DEADLINE, SessionEnd};
use super::loads::{Loads, SentLoads};
use super::logs::SessionAsks;
use super::recorder::Reports;
use super::session_context::SessionContext;
use crate::context::REGISTRY_AUTH;
use crate::feed::clocks::Clocks;
use crate::feed::snapshot::ClusterSnapshot;
use crate::node_service::mesh_table::{Table, for_node};
use crate::seal::Sealer;
use crate::slots::own_ports;
use unacknowledged::Unacknowledged;

/// How often a node must send a message.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// A node that sends nothing for this long is silent.
const SILENCE: Duration = Duration::from_secs(2);
/// The deadline of the first message.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How often a session checks its state when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// One session.
pub(super) struct Session {
    node: NodeId,
    manager: String,
    snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
    tables: watch::Receiver<Arc<Table>>,
    reports: Reports,
    door: Arc<Door>,
    rate: Bucket,
    loads: Arc<Loads>,
    clocks: Arc<Clocks>,
    told_loads: SentLoads,
    log_asks: SessionAsks,
    relay_key: Zeroizing<Vec<u8>>,
    sealer: Arc<Sealer>,
    outgoing: mpsc::Sender<Result<ControlMessage, Status>>,
    /// Ends this session: when a newer one replaces it, or the manager stops.
    token: Arc<CancellationToken>,
    /// Cancelled when the manager stops.
    stopping: CancellationToken,
    /// The generation of the table that the node had when it connected.
    had_generation: u64,
    welcomed: bool,
    told: SentAssignments,
    deliveries: Deliveries,
    sent_table: Option<Arc<Table>>,
    /// Whether the node's agent supports member keys, and the numbers of those that it was sent,
    /// the one in use first.
    takes_cookies: bool,
    told_keys: Option<(Vec<u64>, bool)>,
    /// Whether the node's agent takes the managers' addresses, and what it was sent of them.
    takes_managers: bool,
    told_managers: proto::Managers,
    /// The digest of the CA that signed the certificate with which the node opened the session.
    issuer: String,
    /// Whether the node's agent takes the CAs to trust, and what it was told of them.
    takes_cas: bool,
    told_cas: Option<TrustedCas>,
    told_cas_at: Instant,
    unacknowledged: Unacknowledged,
    /// Since when the node sends messages and has its engine; `None` while it is silent.
    heard_since: Option<Timestamp>,
    /// Whether the node's engine doesn't answer.
    engine_away: bool,
    last_heard: Instant,
    /// Whether a snapshot has shown the node, and shown it as heard by this manager.
    was_member: bool,
    was_ours: bool,
}

impl Session {
    pub(super) fn new(
        node: NodeId,
        issuer: String,
        shared: &SessionContext,
        outgoing: mpsc::Sender<Result<ControlMessage, Status>>,
        token: Arc<CancellationToken>,
    ) -> Self {
        Self {
            node,
            manager: shared.cluster.manager_name.clone(),
            snapshots: shared.cluster.feed.snapshots.clone(),
            tables: shared.tables.clone(),
            reports: shared.reports.clone(),
            door: Arc::clone(&shared.door),
            rate: Bucket::new(MESSAGES_A_SECOND, MESSAGES_AT_ONCE, std::time::Instant::now()),
            loads: Arc::clone(&shared.loads),
            clocks: Arc::clone(&shared.cluster.clocks),
            told_loads: SentLoads::default(),
            log_asks: SessionAsks::new(Arc::clone(&shared.cluster.logs)),
            relay_key: shared.relay_key.clone(),
            sealer: Arc::clone(&shared.cluster.sealer),
            outgoing,
            token,
            stopping: shared.shutdown.clone(),
            had_generation: 0,
            welcomed: false,
            told: SentAssignments::default(),
            deliveries: Deliveries::new(&shared.cluster),
            sent_table: None,
            takes_cookies: false,
            told_keys: None,
            takes_managers: false,
            told_managers: proto::Managers::default(),
            issuer,
            takes_cas: false,
            told_cas: None,
            told_cas_at: Instant::now(),
            unacknowledged: Unacknowledged::default(),
            heard_since: None,
            engine_away: false,
            last_heard: Instant::now(),
            was_member: false,
            was_ours: false,
        }
    }

    /// Serves until the stream breaks or the session must end. Returns whether the node was heard
    /// at the end.
    pub(super) async fn run(mut self, mut incoming: Streaming<AgentMessage>) -> bool {
        let token = Arc::clone(&self.token);
        let end = tokio::select! {
            Err(end) = self.serve(&mut incoming) => end,
            () = token.cancelled() => if self.stopping.is_cancelled() { SessionEnd::Stopping } else { SessionEnd::Superseded },
        };
        info!(node = %self.node, reason = %end, "a session ended");
        if let Some(reason) = end.refusal() {
            self.door.refuse(reason, &format_args!("node {}: {end}", self.node));
        }
        // The stream may be closed or full; then the node learns the end from the connection.
        if self.outgoing.try_send(Err(end.status(&self.node))).is_err() {
            debug!(node = %self.node, "can't send the node why its session ended");
        }
        self.heard_since.is_some() && !matches!(end, SessionEnd::Removed | SessionEnd::Superseded)
    }

    async fn serve(&mut self, incoming: &mut Streaming<AgentMessage>) -> Result<Infallible, SessionEnd> {
        self.greet(incoming).await?;
        self.follow().await?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let silent_at = self.last_heard + SILENCE;
            tokio::select! {
                biased;
                // The table comes first: traffic follows it.
                Ok(()) = self.tables.changed(), if self.sent_table.is_some() => self.send_table().await?,
                Ok(()) = self.snapshots.changed() => self.follow().await?,
                () = self.log_asks.changed(), if self.welcomed => self.send_log_asks().await?,
                message = incoming.message() => match message {
                    Ok(Some(message)) => self.receive(message)?,
                    Ok(None) => return Err(SessionEnd::Closed),
                    Err(status) => return Err(SessionEnd::Broken(Box::new(status))),
                },
                Some(found) = self.deliveries.next(), if self.deliveries.is_waiting() => {
                    self.send(Down::Dependency(found)).await?;
                }
                () = tokio::time::sleep_until(silent_at), if self.heard_since.is_some() => self.note_silence(),
                _ = tick.tick() => {
                    self.follow().await?;
                    self.send_loads();
                }
            }
        }
    }

    /// Handles the node's first message.
    async fn greet(&mut self, incoming: &mut Streaming<AgentMessage>) -> Result<(), SessionEnd> {
        let first = tokio::time::timeout(HELLO_DEADLINE, incoming.message());
        let message = match first.await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Err(SessionEnd::Closed),
            Ok(Err(status)) => return Err(SessionEnd::Broken(Box::new(status))),
            Err(_) => return Err(SessionEnd::Protocol("no hello came in time")),
        };
        let Some(Up::Hello(hello)) = message.body else {
            return Err(SessionEnd::Protocol("the first message must be a hello"));
        };
        let Hello { description_json, address, table_generation, takes_managers, takes_cas } = hello;
        let described = report::read_description(&description_json)?;
        // What the connection proves counts, not what the node says.
        let description = NodeDescription { certificate_issuer: self.issuer.clone(), ..described };
        let address: Ipv4Addr = address
            .parse()
            .map_err(|_| SessionEnd::Protocol("the address in the hello is no IPv4 address"))?;
        address::check(&self.snapshots.borrow(), &self.node, address)?;
        info!(node = %self.node, hostname = %Outside(&description.hostname), %address, table_generation, "a session begins");
        if let Some(cluster) = own_ports::other_tunnel(&self.snapshots.borrow(), &self.node, &description) {
            warn!(
                node = %self.node,
                hostname = %Outside(&description.hostname),
                port = description.tunnel_port(),
                cluster,
                "its tunnel has another port than the cluster's, so no packets pass between it and other nodes: start its \
                 agent with the cluster's port (--vxlan-port, MESH_VXLAN_PORT)"
            );
        }
        self.had_generation = table_generation;
        self.takes_cookies = description.takes_cookies;
        self.takes_managers = takes_managers;
        self.takes_cas = takes_cas;
        self.last_heard = Instant::now();
        let node = self.node.clone();
        self.reports.leave(|mailbox| mailbox.put_description(node, description, IpAddr::V4(address)));
        Ok(())
    }

    /// Sends what the newest snapshot changed for the node.
    async fn follow(&mut self) -> Result<(), SessionEnd> {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        self.check_standing(&snapshot)?;
        self.acknowledge(&snapshot).await?;
        if !self.welcomed {
            let Some(subnet) = snapshot.nodes.get(&self.node).and_then(|node| node.subnet) else {
                return Ok(());
            };
            let heartbeat_ms = u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX);
            let welcome = Welcome {
                node_id: self.node.to_string(),
                subnet: subnet.to_string(),
                heartbeat_ms,
                relay_key: self.relay_key(&snapshot).to_vec(),
                takes_host_networks: true,
            };
            self.send(Down::Welcome(welcome)).await?;
            self.welcomed = true;
            self.note_heard();
        }
        self.send_member_keys(&snapshot).await?;
        self.send_managers(&snapshot).await?;
        self.send_trusted_cas(&snapshot).await?;
        let sealer = Arc::clone(&self.sealer);
        let open = |sealed: &Sealed| match sealer.open(REGISTRY_AUTH, sealed) {
            Ok(opened) => Some(RegistryAuth(String::from_utf8_lossy(&opened).into_owned())),
            Err(error) => {
                warn!(error = mesh_runtime::error_chain(&error), "the node pulls without credentials");
                None
            }
        };
        let may_differ = self.told.may_differ(&self.node, &snapshot);
        if let Some(assignments) = assignments::tell(&mut self.told, &self.node, &snapshot, &open)? {
            self.send(Down::Assignments(assignments)).await?;
        }
        if may_differ || self.deliveries.has_failed() {
            self.deliveries.follow(&self.node, &snapshot);
        }
        self.send_log_asks().await?;
        // A node that had its table from a manager with a newer snapshot must not get an older one.
        let revision = generation_of(snapshot.revision);
        if self.sent_table.is_none() && revision >= self.had_generation {
            let table = Arc::new(Table::of(&snapshot));
            self.tables.mark_changed();
            self.send(Down::Table(for_node(table.whole(), &self.node, Utc::now()))).await?;
            self.sent_table = Some(table);
        }
        Ok(())
    }

    /// Whether this session may go on. If the node is heard and the store says otherwise, reports
    /// it as heard again.
    fn check_standing(&mut self, snapshot: &ClusterSnapshot) -> Result<(), SessionEnd> {
        let member = snapshot.nodes.contains_key(&self.node);
        if self.was_member && !member {
            return Err(if snapshot.cluster.is_some() { SessionEnd::Removed } else { SessionEnd::NoCluster });
        }
        self.was_member = member;
        let liveness = snapshot.liveness.get(&self.node);
        let ready = liveness.is_some_and(|liveness| liveness.state == NodeState::Ready);
        let ours = liveness.is_some_and(|liveness| liveness.manager == self.manager);
        if ready && !ours && self.was_ours {
            return Err(SessionEnd::Superseded);
        }
        self.was_ours |= ready && ours;
        if member && !(ready && ours) {
            self.report_heard();
        }
        Ok(())
    }

    /// Sends what changed since the table that the node has.
    async fn send_table(&mut self) -> Result<(), SessionEnd> {
        let table = Arc::clone(&self.tables.borrow_and_update());
        let Some(sent) = &self.sent_table else { return Ok(()) };
        // A backend that ended leaves the table without a new generation.
        let news = table.generation > sent.generation
            || (table.generation == sent.generation && !table.same_entries(sent));
        if !news {
            return Ok(());
        }
        let changes = for_node(table.since(sent), &self.node, Utc::now());
        // The acknowledgement of a table implies that the node knows the keys of its time. The
        // newest snapshot is at least as new.
        let snapshot = Arc::clone(&self.snapshots.borrow());
        self.send_member_keys(&snapshot).await?;
        self.sent_table = Some(table);
        self.send(Down::Table(changes)).await
    }

    async fn send_log_asks(&mut self) -> Result<(), SessionEnd> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        for ask in self.log_asks.untold(&self.node, &self.manager, &snapshot) {
            self.send(ask).await?;
        }
        Ok(())
    }

    /// Sends loads of other nodes' backends. A node whose queue is full gets the next ones.
    fn send_loads(&mut self) {
        let Some(table) = &self.sent_table else { return };
        if let Some(loads) = self.loads.tell(&mut self.told_loads, &self.node, table) {
            let message = ControlMessage { body: Some(Down::Loads(loads)) };
            if self.outgoing.try_send(Ok(message)).is_err() {
                debug!(node = %self.node, "the queue is full: loads are not sent");
            }
        }
    }

    async fn send(&self, body: Down) -> Result<(), SessionEnd> {
        let message = ControlMessage { body: Some(body) };
        match tokio::time::timeout(SEND_DEADLINE, self.outgoing.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SessionEnd::Closed),
            Err(_) => Err(SessionEnd::Slow),
        }
    }
}
