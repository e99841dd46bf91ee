//! The userspace proxy: published ports as sockets, and the relay between nodes.
//!
//! Purpose: every node answers on every published port. With `--datapath userspace` the proxy is
//! the whole data plane; otherwise it serves connections that the kernel programs don't see: those
//! of the host itself, and over loopback.
//!
//! Invariants: a connection keeps its backend through every change of the view; it ends when client
//! or backend end it, when it is idle for too long, or when its backend is gone. The number of
//! connections is capped. Connections live on the proxy's own threads ([`workers`]).
//!
//! Left to others: selecting the backend ([`crate::lb`]), the packets of other hosts where programs
//! are attached ([`crate::datapath`]).

pub use accept::Listening;

pub mod carry_over;
pub mod dial;
pub mod dial_error;
pub mod ledger;
pub mod preamble;

mod accept;
mod addresses;
mod connect;
mod connection;
mod host_sockets;
mod listeners;
mod pipe;
mod proxy_protocol;
mod relay;
mod routes;
mod sockopt;
mod udp;
mod warm;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use mesh_admission::door::Door;
use mesh_admission::figures::Listener;
use mesh_admission::refusals::Refusals;
use mesh_state::ids::BackendId;
use mesh_state::node::PortClash;
use mesh_state::spec::Protocol;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control_link::relay_keys::RelayKeys;
use crate::lb::Selector;
use crate::lb::loads::Loads;
use crate::lb::ramp::Ramps;
use crate::view::NodeView;
use ledger::Ledger;
use listeners::Listeners;
use routes::{RouteInputs, Routes};
use workers::Workers;

/// How often ports that could not be bound are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How often the weights of backends in slow start are raised.
const RISE_INTERVAL: Duration = Duration::from_millis(500);

/// What the configuration sets for the proxy.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// The address on which published ports listen; IPv6's wildcard takes IPv4 as well.
    pub listen_address: IpAddr,
    /// The address to which other nodes' proxies connect.
    pub relay_listen: SocketAddr,
    /// The port of every other node's relay.
    pub relay_port: u16,
    /// Ports that mesh itself needs on this node, and for what; services can't take them.
    pub own_ports: BTreeMap<(Protocol, u16), String>,
    /// The most connections of clients, and the most of other nodes, that are served at once. As
    /// many connections between nodes may wait in the pools.
    pub connections_max: usize,
    /// An idle TCP connection ends after this, unless its service sets another limit.
    pub idle_limit: Duration,
    /// Idle limits of UDP flows.
    pub udp_limits: UdpLimits,
    /// How long live connections may go on once the agent stops.
    pub drain_limit: Duration,
}

/// How long UDP flows live without a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpLimits {
    /// The limit until the client has sent again after an answer.
    pub new: Duration,
    /// The limit from then on.
    pub established: Duration,
}

impl Default for UdpLimits {
    fn default() -> Self {
        Self { new: Duration::from_secs(30), established: Duration::from_mins(3) }
    }
}

/// The most kernel pipes beside `connections` connections: one for each of eight directions that
/// carry much at the same time.
pub const fn pipes_beside(connections: usize) -> usize {
    const PIPES_MAX: usize = 4096;
    let pipes = connections / 8;
    if pipes < PIPES_MAX { pipes } else { PIPES_MAX }
}

/// Why the proxy could not start.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// The relay's port can't be bound.
    #[error(
        "listen on {address} for other nodes: choose another with --relay-listen, the same port on all nodes"
    )]
    Relay {
        /// The relay's address.
        address: SocketAddr,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The system refuses a thread or an event queue.
    #[error("start the proxy's threads")]
    Workers(#[source] io::Error),
}

/// The running proxy.
#[derive(Debug)]
pub struct Proxy {
    settings: ProxySettings,
    refusals: Refusals,
    /// Counts and logs peers that the relay refuses.
    relay_door: Arc<Door>,
    ledger: Ledger,
    loads: Arc<Loads>,
    routes: ArcSwap<Routes>,
    workers: Workers,
    view: watch::Receiver<Arc<NodeView>>,
    relay_keys: watch::Receiver<RelayKeys>,
    room: Arc<Semaphore>,
    relay_room: Arc<Semaphore>,
    /// Permits of connections between nodes that have no session, at both ends.
    waiting_room: Arc<Semaphore>,
    /// Permits of kernel pipes, for directions that carry much.
    pipes: Arc<Semaphore>,
    tracker: TaskTracker,
    /// Cancelled when no new connections are to be accepted.
    stop: CancellationToken,
    /// Backends that the health check has ejected for now.
    ejected: watch::Sender<BTreeSet<BackendId>>,
    /// Published ports on which this node can't listen.
    clashes: watch::Sender<Vec<PortClash>>,
    /// Ports that belong to the host or to mesh.
    host_ports: watch::Sender<Arc<BTreeSet<(Protocol, u16)>>>,
}

impl Proxy {
    /// Binds the relay's port. [`Proxy::run`] binds published ports.
    ///
    /// # Errors
    /// The relay's port can't be bound.
    pub fn bind(
        settings: ProxySettings,
        view: watch::Receiver<Arc<NodeView>>,
        relay_keys: watch::Receiver<RelayKeys>,
        loads: Arc<Loads>,
        refusals: Refusals,
    ) -> Result<(Arc<Self>, Listening), ProxyError> {
        let address = settings.relay_listen;
        let relay = accept::listen(address).map_err(|source| ProxyError::Relay { address, source })?;
        let room = || Arc::new(Semaphore::new(settings.connections_max));
        let waiting_room = room();
        let proxy = Self {
            relay_door: Door::new(Listener::Relay, Listener::Relay.figures(), refusals.clone()),
            refusals,
            ledger: Ledger::default(),
            loads,
            routes: ArcSwap::default(),
            workers: Workers::start(&waiting_room).map_err(ProxyError::Workers)?,
            view,
            relay_keys,
            room: room(),
            relay_room: room(),
            waiting_room,
            pipes: Arc::new(Semaphore::new(pipes_beside(settings.connections_max))),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            ejected: watch::Sender::default(),
            clashes: watch::Sender::default(),
            host_ports: watch::Sender::new(Arc::new(settings.own_ports.keys().copied().collect())),
            settings,
        };
        Ok((Arc::new(proxy), relay))
    }

    /// The counter of clients that the agent's listeners refuse.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Follows the view until `shutdown`, and reports each generation once new connections follow
    /// it; then drains: live connections may end within the drain limit.
    pub async fn run(
        self: Arc<Self>,
        relay: Listening,
        applied: watch::Sender<u64>,
        shutdown: CancellationToken,
    ) {
        relay::start(&self, relay);
        let (mut listeners, mut ramps) = (Listeners::default(), Ramps::default());
        let (mut views, mut ejected) = (self.view.clone(), self.ejected.subscribe());
        let mut retry = interval(RETRY_INTERVAL);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            let now = Instant::now();
            if view.generation > 0 {
                ramps.observe(&view, now);
            }
            let left_out = ejected.borrow_and_update().clone();
            self.follow(&view, &ramps, &left_out, now);
            listeners.follow(&self, &view);
            applied
                .send_if_modified(|applied| std::mem::replace(applied, view.generation) != view.generation);
            let is_rising = ramps.is_rising(&view, now);
            // The routes stay as they are when only ports that could not be bound are tried again.
            let goes_on = loop {
                tokio::select! {
                    () = shutdown.cancelled() => break false,
                    changed = views.changed() => break changed.is_ok(),
                    changed = ejected.changed() => break changed.is_ok(),
                    _ = retry.tick() => listeners.follow(&self, &view),
                    () = sleep(RISE_INTERVAL), if is_rising => break true,
                }
            };
            if !goes_on {
                break;
            }
        }
        self.stop.cancel();
        self.tracker.close();
        if timeout(self.settings.drain_limit, self.tracker.wait()).await.is_err() {
            tracing::info!(
                connections = self.tracker.len(),
                "cut proxied connections that did not end in time"
            );
            self.ledger.cut();
            self.tracker.wait().await;
        }
        self.workers.stop();
    }

    fn follow(&self, view: &NodeView, ramps: &Ramps, ejected: &BTreeSet<BackendId>, now: Instant) {
        self.ledger.follow(view);
        let inputs = RouteInputs {
            view,
            ledger: &self.ledger,
            relay_port: self.settings.relay_port,
            idle_limit: self.settings.idle_limit,
        };
        self.routes.store(Arc::new(Routes::new(&inputs, Selector::new(view, ramps, ejected, now))));
    }

    /// The address to which other nodes' proxies connect.
    pub fn relay_address(&self) -> SocketAddr {
        self.settings.relay_listen
    }

    /// Replaces the set of backends that the health check has ejected.
    pub fn eject(&self, backends: &BTreeSet<BackendId>) {
        self.ejected.send_if_modified(|present| {
            let changed = present != backends;
            if changed {
                present.clone_from(backends);
            }
            changed
        });
    }

    /// Published ports on which this node can't listen.
    pub fn clashes(&self) -> watch::Receiver<Vec<PortClash>> {
        self.clashes.subscribe()
    }

    /// Ports of this node that services can't take, whatever the table says: other processes listen
    /// there, or mesh itself needs them.
    pub fn host_ports(&self) -> watch::Receiver<Arc<BTreeSet<(Protocol, u16)>>> {
        self.host_ports.subscribe()
    }

    fn tell_host_ports(&self, ports: BTreeSet<(Protocol, u16)>) {
        self.host_ports.send_if_modified(|present| {
            let changed = **present != ports;
            *present = Arc::new(ports);
            changed
        });
    }

    fn tell_clashes(&self, clashes: Vec<PortClash>) {
        self.clashes.send_if_modified(|present| {
            let changed = *present != clashes;
            *present = clashes;
            changed
        });
    }

    /// The proxy's counters.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn relay_keys(&self) -> RelayKeys {
        self.relay_keys.borrow().clone()
    }

    fn routes(&self) -> Guard<Arc<Routes>> {
        self.routes.load()
    }

    /// The load that the backend's node measured, if it is recent enough.
    fn load(&self, id: BackendId) -> Option<u8> {
        self.loads.fresh(id, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_state::proto;

    use super::*;

    /// A view of a service on `port`, without backends.
    fn view(port: u16) -> NodeView {
        let service = proto::MeshService {
            id: "s".into(),
            policy: "round-robin".into(),
            ports: vec![proto::MeshPort { protocol: "tcp".into(), published: port.into(), target: 80 }],
            ..proto::MeshService::default()
        };
        let table = proto::MeshTable { generation: 1, services: vec![service], ..Default::default() };
        NodeView::new("n".into(), Ipv4Addr::LOCALHOST).apply(&table).expect("a good table")
    }

    #[tokio::test]
    async fn a_port_that_was_taken_is_bound_later_and_nothing_else_is_made_anew() {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("its address").port();
        let settings = ProxySettings {
            listen_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            relay_listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            relay_port: 0,
            connections_max: 1,
            idle_limit: Duration::from_secs(1),
            udp_limits: UdpLimits::default(),
            drain_limit: Duration::ZERO,
            own_ports: BTreeMap::new(),
        };
        let (_view, views) = watch::channel(Arc::new(view(port)));
        let (_keys, keys) = watch::channel(RelayKeys::default());
        let (proxy, relay) =
            Proxy::bind(settings, views, keys, Arc::default(), Refusals::new().expect("a counter"))
                .expect("some port is free");
        let (applied, mut is_applied) = watch::channel(0);
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::clone(&proxy).run(relay, applied, stop.clone()));
        is_applied.wait_for(|generation| *generation == 1).await.expect("it runs");
        let mut clashes = proxy.clashes();
        clashes.wait_for(|clashes| clashes.len() == 1).await.expect("it runs");
        let before = Arc::clone(&proxy.routes());
        drop(taken);
        let freed = timeout(Duration::from_secs(20), clashes.wait_for(Vec::is_empty)).await;
        assert!(freed.is_ok(), "the port was never bound");
        assert!(Arc::ptr_eq(&before, &proxy.routes()), "the routes were made anew");
        stop.cancel();
        running.await.expect("it ends");
    }
}
