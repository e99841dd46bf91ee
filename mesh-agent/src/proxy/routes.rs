//! The routes of new connections: each published port of one view with its backends, counters and
//! addresses.
//!
//! Invariants: built from one view and replaced as a whole; a connection finds all it needs without
//! a lock or an allocation.
//!
//! Left to others: choosing ([`crate::lb`]), connecting ([`super::dial`]).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::{BackendId, NodeId};
use mesh_state::lb::Mode;
use mesh_state::spec::Protocol;

use super::dial_error::DialError;
use super::ledger::{BackendEntry, FrontendEntry, Ledger};
use crate::lb::{Frontend, SelectionInput, Selector};
use crate::view::{BackendView, NodeView};
use mesh_runtime::error_chain;

/// The routes of every published port of one view.
#[derive(Debug, Default)]
pub(super) struct Routes {
    ports: BTreeMap<(Protocol, u16), Arc<Route>>,
    /// This node's own backends, which its relay serves.
    local: HashMap<BackendId, Arc<Target>>,
    /// The addresses of member nodes.
    members: Vec<IpAddr>,
    /// This node's address.
    pub(super) address: Option<IpAddr>,
}

/// One published port.
#[derive(Debug)]
pub(super) struct Route {
    frontend: Frontend,
    targets: HashMap<BackendId, Arc<Target>>,
    /// The port's counters.
    pub(super) counters: Arc<FrontendEntry>,
    /// An idle connection ends after this.
    pub(super) idle_limit: Duration,
}

/// A backend, and how to reach it.
#[derive(Debug)]
pub(super) struct Target {
    /// The backend's id.
    pub(super) id: BackendId,
    /// The name of the backend's task.
    pub(super) task_name: String,
    /// The backend's transport protocol.
    pub(super) protocol: Protocol,
    /// How to reach the backend.
    pub(super) place: Place,
    /// The backend's counters, and the signal that it is gone.
    pub(super) entry: Arc<BackendEntry>,
    /// An idle connection ends after this.
    pub(super) idle_limit: Duration,
    /// Whether mesh sends the task a PROXY header with the client's address.
    pub(super) sends_proxy_header: bool,
}

/// How to reach a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The task runs on this node, at this address.
    Here(SocketAddr),
    /// The task runs on another node, with this relay.
    Relay(SocketAddr),
    /// The task's node is not in the view.
    Nowhere(NodeId),
}

/// What routes are built from.
pub(super) struct RouteInputs<'a> {
    /// The view of the mesh.
    pub(super) view: &'a NodeView,
    /// The proxy's counters, of which each route takes its own.
    pub(super) ledger: &'a Ledger,
    /// The port of every other node's relay.
    pub(super) relay_port: u16,
    /// The idle limit of services that set none.
    pub(super) idle_limit: Duration,
}

impl Routes {
    /// Builds the routes of a view; `selector` chooses among its backends.
    pub(super) fn new(inputs: &RouteInputs<'_>, selector: Selector) -> Self {
        let view = inputs.view;
        let targets: HashMap<BackendId, Arc<Target>> =
            view.backends.values().map(|backend| (backend.id, Arc::new(inputs.target(backend)))).collect();
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
                counters: inputs.ledger.frontend(&key),
                idle_limit: inputs.idle_limit(frontend.settings.idle_timeout_s),
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

    /// The route of a published port, if it is published.
    pub(super) fn route(&self, protocol: Protocol, published: u16) -> Option<&Arc<Route>> {
        self.ports.get(&(protocol, published))
    }

    /// This node's backend with this id.
    pub(super) fn local(&self, id: BackendId) -> Option<&Arc<Target>> {
        self.local.get(&id)
    }

    /// Whether a member node has this address.
    pub(super) fn is_member(&self, peer: IpAddr) -> bool {
        self.members.contains(&peer.to_canonical())
    }
}

impl Route {
    /// Whether the service's allow-list admits the client.
    pub(super) fn admits(&self, client: IpAddr) -> bool {
        self.frontend.admits(client)
    }

    /// Selects the backend for the next connection of `client`, none of `refused`.
    pub(super) fn select(
        &self,
        client: IpAddr,
        turn: u64,
        refused: &[BackendId],
        load: &dyn Fn(BackendId) -> Option<u8>,
    ) -> Option<&Arc<Target>> {
        let live = |id| self.targets.get(&id).map_or(0, |target| target.entry.live());
        let id = self.frontend.select(&SelectionInput { turn, client, live: &live, load, refused })?;
        self.targets.get(&id)
    }
}

impl Target {
    /// Counts and logs that the backend could not be connected to.
    pub(super) fn note_failure(&self, error: &DialError) {
        self.entry.count_failure(error.reason());
        tracing::debug!(
            backend = self.id.get(),
            task = self.task_name,
            error = %error_chain(error),
            "can't connect to a backend; try another"
        );
    }
}

impl RouteInputs<'_> {
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
            sends_proxy_header: backend.protocol == Protocol::Tcp
                && settings.is_some_and(|settings| settings.mode == Mode::Proxy),
        }
    }

    fn idle_limit(&self, seconds: Option<std::num::NonZeroU32>) -> Duration {
        seconds.map_or(self.idle_limit, |seconds| Duration::from_secs(seconds.get().into()))
    }
}
