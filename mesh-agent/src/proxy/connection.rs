//! One client's connection: select a backend, connect to it or to another, carry the bytes.
//!
//! Invariants: a connection keeps its backend whatever the view says later, unless the backend is gone; at most
//! [`ATTEMPTS_MAX`] backends are tried; a client for whom none is left gets a RST, not a silent close.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_state::spec::Protocol;
use tokio::net::TcpStream;

use super::Proxy;
use super::dial::{self, DialError, Ends};
use super::ledger::{BackendEntry, FrontendEntry, Opened};
use super::pipe::{self, Terms};
use crate::error_chain;
use crate::lb::{Frontend, Odds};
use crate::view::{BackendView, NodeView};

/// Backends tried for one connection.
const ATTEMPTS_MAX: usize = 4;

/// A backend that took the connection.
struct Connected {
    entry: Arc<BackendEntry>,
    stream: TcpStream,
    opened: Opened,
}

/// Serves a client of the published port `published`.
pub(super) async fn serve(proxy: &Proxy, client: TcpStream, peer: SocketAddr, published: u16) {
    let Ok(destination) = client.local_addr() else { return };
    let selector = proxy.selector();
    let Some(frontend) = selector.frontend(Protocol::Tcp, published) else {
        pipe::reset(&client);
        return;
    };
    let counters =
        proxy.ledger.frontend(&(frontend.service.clone(), frontend.port.protocol, frontend.port.published));
    counters.count_opened();
    let ends = Ends { client: peer, destination };
    let Some(connected) = connect(proxy, frontend, &counters, ends).await else {
        pipe::reset(&client);
        return;
    };
    if let Err(error) = carry(proxy, client, connected, &counters).await {
        tracing::debug!(%peer, published, error = %error_chain(&error), "a proxied connection ended");
    }
}

async fn connect(
    proxy: &Proxy,
    frontend: &Frontend,
    counters: &FrontendEntry,
    ends: Ends,
) -> Option<Connected> {
    let view = proxy.view();
    let turn = counters.next_turn();
    let mut refused = Vec::new();
    while refused.len() < ATTEMPTS_MAX {
        let selected = frontend.select(&Odds {
            turn,
            client: ends.client.ip(),
            live: &|id| proxy.ledger.live(id),
            load: &|_| None,
            refused: &refused,
        });
        let Some(backend) = selected.and_then(|id| view.backends.get(&id)) else { break };
        let entry = proxy.ledger.backend(backend.id);
        let opened = entry.open();
        match dial(proxy, &view, backend, ends).await {
            Ok(stream) => return Some(Connected { entry, stream, opened }),
            Err(error) => {
                entry.count_failure(error.reason());
                tracing::debug!(
                    backend = backend.id.get(),
                    task = backend.task_name,
                    error = %error_chain(&error),
                    "connect to a backend; another is tried"
                );
                refused.push(backend.id);
            }
        }
    }
    counters.count_unassigned(!refused.is_empty());
    None
}

async fn dial(
    proxy: &Proxy,
    view: &NodeView,
    backend: &BackendView,
    ends: Ends,
) -> Result<TcpStream, DialError> {
    if view.is_local(backend) {
        dial::dial_task(backend).await
    } else {
        dial::dial_relay(view, backend, proxy.settings.relay_port, &proxy.relay_keys(), ends).await
    }
}

async fn carry(
    proxy: &Proxy,
    client: TcpStream,
    connected: Connected,
    counters: &FrontendEntry,
) -> Result<(), pipe::PipeError> {
    let Connected { entry, stream, opened } = connected;
    client.set_nodelay(true)?;
    let terms = Terms {
        idle_limit: proxy.settings.idle_limit,
        gone: entry.gone(),
        cut: &proxy.cut,
        request: &[entry.request_bytes(), counters.request_bytes()],
        reply: &[entry.reply_bytes(), counters.reply_bytes()],
    };
    let result = pipe::carry(client, stream, &terms).await;
    drop(opened);
    result
}
