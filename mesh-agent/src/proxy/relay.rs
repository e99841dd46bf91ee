//! The relay: other nodes' proxies reach this node's tasks through it, with one session after
//! another on a connection.
//!
//! Invariants: the relay reads nothing from peers that are no member nodes; it connects to nothing
//! before a preamble is valid and answers this session's own challenge; it reaches tasks of this
//! node only, so connections never travel in circles.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_admission::refusals::Reason;
use mesh_state::spec::Protocol;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::accept::{Listening, accept_until};
use super::addresses::ConnectionAddresses;
use super::dial::dial_task;
use super::dial_error::{DialError, FailureReason};
use super::pipe::{self, Leg, PipeContext};
use super::preamble::{self, Answer, Challenge, PREAMBLE_LENGTH, Preamble, PreambleError};
use super::routes::{Place, Target};
use super::{Proxy, udp};
use mesh_runtime::error_chain;

/// How long a member's connection may wait in a pool; proxies close theirs sooner.
const PREAMBLE_DEADLINE: Duration = Duration::from_secs(30);

/// How long a session may wait for a permit; the proxy that asks waits no longer for its answer.
const ROOM_DEADLINE: Duration = Duration::from_secs(5);

/// Why a relayed connection was not served.
#[derive(Debug, Error)]
enum RelayError {
    #[error("no member node has this address")]
    Stranger,
    #[error("send the challenge")]
    Challenge(#[source] io::Error),
    #[error("read the preamble")]
    Read(#[source] io::Error),
    #[error("refuse the preamble")]
    Preamble(#[from] PreambleError),
    #[error("the preamble answers another challenge")]
    Replayed,
    #[error("backend {0} doesn't run here")]
    NotHere(u32),
    #[error("no room for a session within {ROOM_DEADLINE:?}")]
    NoRoom,
    #[error("reach the task")]
    Dial(#[from] DialError),
}

impl RelayError {
    /// The answer to the other node; peers that are no members get none.
    fn answer(&self) -> Option<Answer> {
        match self {
            Self::Stranger | Self::Challenge(_) | Self::Read(_) => None,
            Self::Preamble(_) | Self::Replayed => Some(Answer::Denied),
            Self::NotHere(_) => Some(Answer::UnknownBackend),
            Self::NoRoom => Some(Answer::Timeout),
            Self::Dial(error) => Some(match error.reason() {
                FailureReason::Timeout => Answer::Timeout,
                FailureReason::Reset => Answer::Refused,
                FailureReason::Unreachable => Answer::Unreachable,
            }),
        }
    }
}

/// A verified request for one session.
struct SessionRequest {
    target: Arc<Target>,
    task: SocketAddr,
    addresses: ConnectionAddresses,
}

/// Serves the relay's port until the agent stops. One thread accepts and gives connections to all
/// threads in turn, as they are few and live long: if each lived on the thread that happened to be
/// awake, one thread could carry many of them.
pub(super) fn start(proxy: &Arc<Proxy>, listening: Listening) {
    let Some(acceptor) = proxy.workers.next() else {
        return tracing::error!("the proxy has no threads: other nodes reach no task here");
    };
    let serving = Arc::clone(proxy);
    let accept = async move {
        accept_until(listening, &serving.relay_room, &serving.stop, |stream, peer, permit| {
            let (proxy, Some(worker)) = (Arc::clone(&serving), serving.workers.next()) else { return };
            worker.handle.spawn(serving.tracker.track_future(async move {
                match TcpStream::from_std(stream) {
                    Ok(stream) => serve(&proxy, stream, peer, permit).await,
                    Err(error) => tracing::warn!(%peer, error = error_chain(&error), "can't give a relayed connection to a thread"),
                }
            }));
        })
        .await;
    };
    acceptor.handle.spawn(proxy.tracker.track_future(accept));
}

async fn serve(proxy: &Proxy, mut stream: TcpStream, peer: SocketAddr, accepted: OwnedSemaphorePermit) {
    let mut challenge: Challenge = rand::random();
    if let Err(error) = greet(proxy, &mut stream, peer, &challenge).await {
        return refuse(proxy, stream, peer, &error).await;
    }
    let mut room = accepted;
    loop {
        // A connection that waits in a pool holds no session's permit.
        let waits = Arc::clone(&proxy.waiting_room).try_acquire_owned().map(|waiting| room = waiting).is_ok();
        let admitted = tokio::select! {
            admitted = admit(proxy, &mut stream, peer, challenge) => admitted,
            () = proxy.stop.cancelled() => return,
        };
        let asked = match admitted {
            Ok(None) => return,
            Ok(Some(asked)) => asked,
            Err(error) => return refuse(proxy, stream, peer, &error).await,
        };
        if waits {
            let permit = tokio::select! {
                permit = timeout(ROOM_DEADLINE, Arc::clone(&proxy.relay_room).acquire_owned()) => permit,
                () = proxy.stop.cancelled() => return,
            };
            let Ok(Ok(permit)) = permit else {
                return refuse(proxy, stream, peer, &RelayError::NoRoom).await;
            };
            room = permit;
        }
        if asked.target.protocol == Protocol::Udp {
            return udp::relayed::carry(stream, &asked.target, asked.task).await;
        }
        let Some(again) = session(proxy, stream, peer, &asked).await else { return };
        if proxy.waiting_room.available_permits() == 0 {
            return;
        }
        stream = again;
        challenge = preamble::next(challenge);
    }
}

/// Connects to the task and carries the session's bytes. Returns the connection if it can carry
/// another session.
async fn session(
    proxy: &Proxy,
    stream: TcpStream,
    peer: SocketAddr,
    asked: &SessionRequest,
) -> Option<TcpStream> {
    let _waited_for = asked.target.entry.wait_for();
    match dial_task(asked.task, asked.target.sends_proxy_header.then_some(asked.addresses)).await {
        Ok(task) => match carry(stream, task, &asked.target).await {
            Ok(again) => again,
            Err(error) => {
                let backend = asked.target.id.get();
                tracing::debug!(%peer, backend, error = error_chain(&error), "a relayed connection ended");
                None
            }
        },
        Err(error) => {
            refuse(proxy, stream, peer, &error.into()).await;
            None
        }
    }
}

async fn refuse(proxy: &Proxy, mut stream: TcpStream, peer: SocketAddr, error: &RelayError) {
    if let RelayError::Stranger = error {
        proxy.relay_door.refuse(Reason::Stranger, &peer);
    } else {
        tracing::warn!(%peer, error = %error_chain(error), "refuse a relayed connection");
    }
    let answered = match error.answer() {
        Some(answer) => stream.write_all(&[answer.to_byte()]).await.is_ok(),
        None => false,
    };
    if !answered {
        pipe::reset(&stream);
    }
}

/// Sends a member its challenge.
async fn greet(
    proxy: &Proxy,
    stream: &mut TcpStream,
    peer: SocketAddr,
    challenge: &Challenge,
) -> Result<(), RelayError> {
    if !proxy.routes().is_member(peer.ip()) {
        return Err(RelayError::Stranger);
    }
    stream.write_all(challenge).await.map_err(RelayError::Challenge)
}

/// Reads and verifies a member's request; `None` if the member hangs up, or sends nothing for too
/// long.
async fn admit(
    proxy: &Proxy,
    stream: &mut TcpStream,
    peer: SocketAddr,
    challenge: Challenge,
) -> Result<Option<SessionRequest>, RelayError> {
    let mut bytes = [0; PREAMBLE_LENGTH];
    match timeout(PREAMBLE_DEADLINE, stream.read_exact(&mut bytes)).await {
        Err(_) => return Ok(None),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Ok(Err(error)) => return Err(RelayError::Read(error)),
        Ok(Ok(_)) => {}
    }
    // The peer may have left the mesh since it connected.
    if !proxy.routes().is_member(peer.ip()) {
        return Err(RelayError::Stranger);
    }
    let preamble = Preamble::verify(&bytes, proxy.relay_keys().iter())?;
    if preamble.challenge != challenge {
        return Err(RelayError::Replayed);
    }
    let not_here = RelayError::NotHere(preamble.backend.get());
    let Some(target) = proxy.routes().local(preamble.backend).cloned() else { return Err(not_here) };
    let Place::Here(task) = target.place else { return Err(not_here) };
    let addresses = ConnectionAddresses { client: preamble.client, destination: preamble.destination };
    Ok(Some(SessionRequest { target, task, addresses }))
}

async fn carry(
    mut stream: TcpStream,
    task: TcpStream,
    target: &Target,
) -> Result<Option<TcpStream>, pipe::PipeError> {
    stream.write_all(&[Answer::Connected.to_byte()]).await?;
    let context = PipeContext {
        idle_limit: target.idle_limit,
        gone: target.entry.gone(),
        // The node that selected the backend counts the traffic.
        request: &[],
        reply: &[],
        // Sessions are framed, so their bytes are copied anyway.
        pipes: None,
    };
    pipe::carry(Leg::Framed(stream), Leg::Plain(task), &context).await
}
