//! One client's connection: selects a backend, connects to it or to another one, and carries the
//! bytes.
//!
//! Invariants: a connection keeps its backend through every change of the view, unless the backend
//! is gone; at most [`ATTEMPTS_MAX`] backends are tried; a client for whom no backend is left gets
//! a RST, not a FIN.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_state::ids::BackendId;
use mesh_state::spec::Protocol;
use tokio::net::TcpStream;

use super::Proxy;
use super::addresses::ConnectionAddresses;
use super::dial::{self, RelayAccess};
use super::dial_error::DialError;
use super::ledger::Opened;
use super::pipe::{self, Leg, PipeContext};
use super::routes::{Place, Route, Target};
use super::warm::{Greeted, Warm};
use mesh_runtime::error_chain;

/// The most backends that are tried for one connection.
pub(super) const ATTEMPTS_MAX: usize = 4;

/// A backend that accepted the connection.
struct Connected {
    target: Arc<Target>,
    link: BackendLink,
    opened: Opened,
    began: Instant,
}

/// The connection to a backend.
enum BackendLink {
    /// To a task on this node.
    Task(TcpStream),
    /// Through the relay at this address.
    Relay(SocketAddr, Greeted),
}

/// Serves a client of the published port `published`.
pub(super) async fn serve(
    proxy: &Proxy,
    warm: &Arc<Warm>,
    client: TcpStream,
    peer: SocketAddr,
    published: u16,
) {
    let Some(route) = proxy.routes().route(Protocol::Tcp, published).cloned() else {
        pipe::reset(&client);
        return;
    };
    route.counters.count_opened();
    if !route.admits(peer.ip()) {
        route.counters.count_denied();
        pipe::reset(&client);
        return;
    }
    let Some(connected) = connect(proxy, warm, &route, &client, peer).await else {
        pipe::reset(&client);
        return;
    };
    if let Err(error) = carry(proxy, warm, client, connected, &route).await {
        tracing::debug!(%peer, published, error = %error_chain(&error), "a proxied connection ended");
    }
}

async fn connect(
    proxy: &Proxy,
    warm: &Arc<Warm>,
    route: &Route,
    client: &TcpStream,
    peer: SocketAddr,
) -> Option<Connected> {
    let turn = route.counters.next_turn();
    let mut refused: Vec<BackendId> = Vec::new();
    while refused.len() < ATTEMPTS_MAX {
        let Some(target) = route.select(peer.ip(), turn, &refused, &|id| proxy.load(id)) else { break };
        let opened = target.entry.open();
        let began = Instant::now();
        match dial(proxy, warm, target, client, peer).await {
            Ok(link) => {
                target.entry.count_answered();
                route.counters.time_connect(began.elapsed());
                return Some(Connected { target: Arc::clone(target), link, opened, began });
            }
            Err(error) => {
                target.note_failure(&error);
                refused.push(target.id);
            }
        }
    }
    route.counters.count_unassigned(!refused.is_empty());
    None
}

async fn dial(
    proxy: &Proxy,
    warm: &Arc<Warm>,
    target: &Target,
    client: &TcpStream,
    peer: SocketAddr,
) -> Result<BackendLink, DialError> {
    let addresses = || {
        let destination = client.local_addr().unwrap_or(peer);
        ConnectionAddresses { client: peer, destination }
    };
    match &target.place {
        Place::Here(address) => {
            dial::dial_task(*address, target.sends_proxy_header.then(addresses)).await.map(BackendLink::Task)
        }
        Place::Relay(relay) => {
            let (keys, source) = (proxy.relay_keys(), proxy.routes().address);
            let access = RelayAccess { source, keys: &keys, warm };
            let greeted = dial::dial_relay(&access, *relay, target.id, addresses()).await?;
            Ok(BackendLink::Relay(*relay, greeted))
        }
        Place::Nowhere(node) => Err(DialError::UnknownNode(node.clone())),
    }
}

async fn carry(
    proxy: &Proxy,
    warm: &Arc<Warm>,
    client: TcpStream,
    connected: Connected,
    route: &Route,
) -> Result<(), pipe::PipeError> {
    let Connected { target, link, opened, began } = connected;
    let (backend, frontend) = (&target.entry, &route.counters);
    let context = PipeContext {
        idle_limit: route.idle_limit,
        gone: backend.gone(),
        request: &[backend.bytes().request(), frontend.bytes().request()],
        reply: &[backend.bytes().reply(), frontend.bytes().reply()],
        pipes: Some(&proxy.pipes),
    };
    let client = Leg::Plain(client);
    let result = match link {
        BackendLink::Task(stream) => pipe::carry(client, Leg::Plain(stream), &context).await.map(drop),
        BackendLink::Relay(relay, Greeted { stream, challenge }) => {
            pipe::carry(client, Leg::Framed(stream), &context).await.map(|again| {
                if let Some(stream) = again {
                    warm.give(relay, Greeted { stream, challenge });
                }
            })
        }
    };
    drop(opened);
    frontend.time_life(began.elapsed());
    result
}
