//! Where new connections of a published port may go: one view, its ledger entries and its addresses, put together once.
//!
//! Invariants: built from one view and replaced as a whole; a connection finds all it needs without a lock or an allocation.
//!
//! Left to others: choosing (`lb`), connecting (`dial`).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::{BackendId, NodeId};
use mesh_state::lb::Mode;
use mesh_state::spec::Protocol;

use super::dial::DialError;
use super::ledger::{BackendEntry, FrontendEntry, Ledger};
use crate::lb::{Frontend, Odds, Selector};
use crate::view::{BackendView, NodeView};
use mesh_runtime::error_chain;

/// Every published port of one view.
#[derive(Debug, Default)]
pub(super) struct Routes {
    ports: BTreeMap<(Protocol, u16), Arc<Route>>,
    /// This node's own backends: what its relay serves.
    local: HashMap<BackendId, Arc<Target>>,
    /// Member nodes' addresses.
    members: Vec<IpAddr>,
    /// This node's address.
    pub(super) address: Option<IpAddr>,
}

/// One published port.
#[derive(Debug)]
pub(super) struct Route {
    frontend: Frontend,
    targets: HashMap<BackendId, Arc<Target>>,
    /// What it counts.
    pub(super) counters: Arc<FrontendEntry>,
    /// A connection without a byte for this long ends.
    pub(super) idle_limit: Duration,
}

/// A backend and the way to it.
#[derive(Debug)]
pub(super) struct Target {
    /// Its id.
    pub(super) id: BackendId,
    /// Its task's name.
    pub(super) task_name: String,
    /// Transport.
    pub(super) protocol: Protocol,
    /// The way to it.
    pub(super) place: Place,
    /// What it counts, and whether it is gone.
    pub(super) entry: Arc<BackendEntry>,
    /// A connection without a byte for this long ends.
    pub(super) idle_limit: Duration,
    /// Whether the task is told the client's address by the PROXY protocol.
    pub(super) tells_client: bool,
}

/// The way to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// It runs here.
    Here(SocketAddr),
    /// Through this relay.
    Relay(SocketAddr),
    /// On a node that the view doesn't hold.
    Nowhere(NodeId),
}

/// What routes are made of.
pub(super) struct Ground<'a> {
    /// The mesh.
    pub(super) view: &'a NodeView,
    /// The counters.
    pub(super) ledger: &'a Ledger,
    /// The port of every other node's relay.
    pub(super) relay_port: u16,
    /// For services that say nothing.
    pub(super) idle_limit: Duration,
}

impl Routes {
    /// The routes of a view whose choices `selector` makes.
    pub(super) fn new(ground: &Ground<'_>, selector: Selector) -> Self {
        let view = ground.view;
        let targets: HashMap<BackendId, Arc<Target>> =
            view.backends.values().map(|backend| (backend.id, Arc::new(ground.target(backend)))).collect();
        let mut of_port: HashMap<(Protocol, u16), HashMap<BackendId, Arc<Target>>> = HashMap::new();
        for backend in view.backends.values() {
            let port = of_port.entry((backend.protocol, backend.published)).or_default();
            port.insert(backend.id, Arc::clone(&targets[&backend.id]));
        }
        let route = |frontend: Frontend| {
            let port = (frontend.port.protocol, frontend.port.published);
            let key = (frontend.service.clone(), port.0, port.1);
            let route = Route {
                targets: of_port.remove(&port).unwrap_or_default(),
                counters: ground.ledger.frontend(&key),
                idle_limit: ground.idle_limit(frontend.settings.idle_timeout_s),
                frontend,
            };
            (port, Arc::new(route))
        };
        let ports = selector.into_frontends().map(route).collect();
        let local =
            targets.into_iter().filter(|(_, target)| matches!(target.place, Place::Here(_))).collect();
        let members = view.nodes.values().map(|node| node.address.into()).collect();
        Self { ports, local, members, address: Some(view.address.into()) }
    }

    /// The published port, if there is one.
    pub(super) fn route(&self, protocol: Protocol, published: u16) -> Option<&Arc<Route>> {
        self.ports.get(&(protocol, published))
    }

    /// This node's backend of this id.
    pub(super) fn local(&self, id: BackendId) -> Option<&Arc<Target>> {
        self.local.get(&id)
    }

    /// Whether a member node has this address.
    pub(super) fn is_member(&self, peer: IpAddr) -> bool {
        self.members.contains(&peer.to_canonical())
    }
}

impl Route {
    /// Whether a client with this address may connect.
    pub(super) fn admits(&self, client: IpAddr) -> bool {
        self.frontend.admits(client)
    }

    /// The backend for the next connection of `client`, none of `refused`.
    pub(super) fn select(
        &self,
        client: IpAddr,
        turn: u64,
        refused: &[BackendId],
        load: &dyn Fn(BackendId) -> Option<u8>,
    ) -> Option<&Arc<Target>> {
        let live = |id| self.targets.get(&id).map_or(0, |target| target.entry.live());
        let id = self.frontend.select(&Odds { turn, client, live: &live, load, refused })?;
        self.targets.get(&id)
    }
}

impl Target {
    /// Counts and tells that it could not be connected to.
    pub(super) fn note_failure(&self, error: &DialError) {
        self.entry.count_failure(error.reason());
        tracing::debug!(
            backend = self.id.get(),
            task = self.task_name,
            error = %error_chain(error),
            "connect to a backend; another is tried"
        );
    }
}

impl Ground<'_> {
    fn target(&self, backend: &BackendView) -> Target {
        let settings = self.view.services.get(&backend.service_id).map(|service| &service.lb);
        let place = if self.view.is_local(backend) {
            Place::Here(SocketAddr::new(backend.address, backend.target))
        } else {
            match self.view.nodes.get(&backend.node_id) {
                Some(node) => Place::Relay(SocketAddr::new(node.address.into(), self.relay_port)),
                None => Place::Nowhere(backend.node_id.clone()),
            }
        };
        Target {
            id: backend.id,
            task_name: backend.task_name.clone(),
            protocol: backend.protocol,
            place,
            entry: self.ledger.backend(backend.id),
            idle_limit: self.idle_limit(settings.and_then(|settings| settings.idle_timeout_s)),
            tells_client: backend.protocol == Protocol::Tcp
                && settings.is_some_and(|settings| settings.mode == Mode::Proxy),
        }
    }

    fn idle_limit(&self, seconds: Option<std::num::NonZeroU32>) -> Duration {
        seconds.map_or(self.idle_limit, |seconds| Duration::from_secs(seconds.get().into()))
    }
}
