//! The relay: other nodes' proxies reach this node's tasks through it.
//!
//! Invariants: only member nodes are listened to at all; nothing is connected before a preamble is found good, fresh and new;
//! only tasks of this node are reached, so that connections never travel in circles.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::Proxy;
use super::accept::accept_until;
use super::dial::{DialError, FailureReason, dial_task, unix_ms};
use super::pipe::{self, Terms};
use super::preamble::{Answer, PREAMBLE_LENGTH, Preamble, PreambleError};
use super::replay::{ReplayError, ReplayWindow};
use crate::error_chain;
use crate::view::{BackendView, NodeView};

/// A member that connects and says nothing is cut after this.
const PREAMBLE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a relayed connection was not served.
#[derive(Debug, Error)]
enum RelayError {
    #[error("no member node has this address")]
    Stranger,
    #[error("read the preamble")]
    Read(#[source] io::Error),
    #[error("no preamble within {PREAMBLE_DEADLINE:?}")]
    Silent,
    #[error("refuse the preamble")]
    Preamble(#[from] PreambleError),
    #[error("refuse the preamble")]
    Replay(#[from] ReplayError),
    #[error("backend {0} doesn't run here")]
    NotHere(u32),
    #[error("reach the task")]
    Dial(#[from] DialError),
}

impl RelayError {
    /// What the other node is told; strangers are told nothing.
    fn answer(&self) -> Option<Answer> {
        match self {
            Self::Stranger | Self::Read(_) | Self::Silent => None,
            Self::Preamble(_) | Self::Replay(ReplayError::Replayed | ReplayError::Stale { .. }) => {
                Some(Answer::Denied)
            }
            Self::Replay(ReplayError::Full) => Some(Answer::Busy),
            Self::NotHere(_) => Some(Answer::UnknownBackend),
            Self::Dial(error) => Some(match error.reason() {
                FailureReason::Timeout => Answer::Timeout,
                FailureReason::Reset => Answer::Refused,
                FailureReason::Unreachable => Answer::Unreachable,
            }),
        }
    }
}

/// Serves the relay's port until the agent stops.
pub(super) async fn run(proxy: Arc<Proxy>, listener: TcpListener) {
    let window = Arc::new(Mutex::new(ReplayWindow::default()));
    let stop = proxy.stop.clone();
    accept_until(&listener, &proxy.relay_room, &stop, |stream, peer, permit| {
        let (serving, window) = (Arc::clone(&proxy), Arc::clone(&window));
        proxy.tracker.spawn(async move {
            serve(&serving, &window, stream, peer).await;
            drop(permit);
        });
    })
    .await;
}

async fn serve(proxy: &Proxy, window: &Mutex<ReplayWindow>, mut stream: TcpStream, peer: SocketAddr) {
    match admit(proxy, window, &mut stream, peer.ip()).await {
        Ok((backend, task)) => {
            if let Err(error) = carry(proxy, stream, task, &backend).await {
                tracing::debug!(%peer, backend = backend.id.get(), %error, "a relayed connection ended");
            }
        }
        Err(error) => {
            tracing::warn!(%peer, error = %error_chain(&error), "refuse a relayed connection");
            let told = match error.answer() {
                Some(answer) => stream.write_all(&[answer.to_byte()]).await.is_ok(),
                None => false,
            };
            if !told {
                pipe::reset(&stream);
            }
        }
    }
}

async fn admit(
    proxy: &Proxy,
    window: &Mutex<ReplayWindow>,
    stream: &mut TcpStream,
    peer: IpAddr,
) -> Result<(BackendView, TcpStream), RelayError> {
    let view = proxy.view();
    if !is_member(&view, peer) {
        return Err(RelayError::Stranger);
    }
    let mut bytes = [0; PREAMBLE_LENGTH];
    timeout(PREAMBLE_DEADLINE, stream.read_exact(&mut bytes))
        .await
        .map_err(|_| RelayError::Silent)?
        .map_err(RelayError::Read)?;
    let keys = proxy.relay_keys();
    let preamble = Preamble::verify(&bytes, keys.iter())?;
    window.lock().unwrap_or_else(PoisonError::into_inner).admit(
        unix_ms(),
        preamble.made_unix_ms,
        preamble.nonce,
    )?;
    let backend = view
        .backends
        .get(&preamble.backend)
        .filter(|backend| view.is_local(backend))
        .cloned()
        .ok_or(RelayError::NotHere(preamble.backend.get()))?;
    let task = dial_task(&backend).await?;
    Ok((backend, task))
}

async fn carry(
    proxy: &Proxy,
    mut stream: TcpStream,
    task: TcpStream,
    backend: &BackendView,
) -> Result<(), pipe::PipeError> {
    let entry = proxy.ledger.backend(backend.id);
    stream.set_nodelay(true)?;
    stream.write_all(&[Answer::Connected.to_byte()]).await?;
    let terms = Terms {
        idle_limit: proxy.settings.idle_limit,
        gone: entry.gone(),
        cut: &proxy.cut,
        // Traffic is counted where the backend was selected.
        request: &[],
        reply: &[],
    };
    pipe::carry(stream, task, &terms).await
}

fn is_member(view: &NodeView, peer: IpAddr) -> bool {
    let IpAddr::V4(peer) = peer.to_canonical() else { return false };
    view.nodes.values().any(|node| node.address == peer)
}
