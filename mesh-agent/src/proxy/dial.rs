//! Connecting to a backend: directly if its task runs here, through its node's relay if not.
//!
//! Invariants: every attempt has a deadline; a remote backend counts as connected only once its relay says so.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_state::ids::NodeId;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::preamble::{Answer, NONCE_LENGTH, Preamble};
use crate::control_link::relay_keys::{RelayKey, RelayKeys};
use crate::view::{BackendView, NodeView};

/// A task that does not answer within this is passed over.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// A relay has its own deadline for the task, and needs time to say so.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Why a backend could not be connected to.
#[derive(Debug, Error)]
pub enum DialError {
    /// The connection to the task or the relay failed.
    #[error("connect to {address}")]
    Connect {
        /// The task's or the relay's address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing answered in time.
    #[error("no answer from {address} in time")]
    Deadline {
        /// The task's or the relay's address.
        address: SocketAddr,
    },
    /// The view names no such node.
    #[error("node {0} is not in the mesh table")]
    UnknownNode(NodeId),
    /// No manager has given a relay key yet.
    #[error("no relay key yet: a manager must be reached once")]
    NoKey,
    /// The relay said no.
    #[error("relay {relay} answered {answer:?}")]
    Relay {
        /// The relay.
        relay: SocketAddr,
        /// Its answer; `None` if this version doesn't know it.
        answer: Option<Answer>,
    },
}

/// Why an attempt failed, as metrics tell it apart.
#[repr(usize)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    /// No answer.
    Timeout = 0,
    /// The task refused.
    Reset = 1,
    /// No way to the task.
    Unreachable = 2,
}

impl FailureReason {
    /// Every reason, in the order of the numbers.
    pub const ALL: [Self; 3] = [Self::Timeout, Self::Reset, Self::Unreachable];

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
        }
    }
}

impl DialError {
    /// The reason, for counters.
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Deadline { .. } | Self::Relay { answer: Some(Answer::Timeout), .. } => {
                FailureReason::Timeout
            }
            Self::Relay { answer: Some(Answer::Refused), .. } => FailureReason::Reset,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                FailureReason::Reset
            }
            Self::Connect { .. } | Self::UnknownNode(_) | Self::NoKey | Self::Relay { .. } => {
                FailureReason::Unreachable
            }
        }
    }
}

/// Who connected to what.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The client.
    pub client: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

/// Connects to a task on this node.
///
/// # Errors
/// It can't be reached, or refuses.
pub async fn dial_task(backend: &BackendView) -> Result<TcpStream, DialError> {
    connect(SocketAddr::new(backend.address, backend.target), None).await
}

/// Connects to a task on another node, through that node's relay on `relay_port`.
///
/// # Errors
/// The relay or the task can't be reached, or refuses.
pub async fn dial_relay(
    view: &NodeView,
    backend: &BackendView,
    relay_port: u16,
    keys: &RelayKeys,
    ends: Ends,
) -> Result<TcpStream, DialError> {
    let node =
        view.nodes.get(&backend.node_id).ok_or_else(|| DialError::UnknownNode(backend.node_id.clone()))?;
    let relay = SocketAddr::new(node.address.into(), relay_port);
    let mut last = DialError::NoKey;
    // While keys rotate the other node may still hold only the key before.
    for key in keys.iter() {
        match ask_relay(view, relay, backend, key, ends).await {
            Err(error @ DialError::Relay { answer: Some(Answer::Denied), .. }) => last = error,
            result => return result,
        }
    }
    Err(last)
}

async fn ask_relay(
    view: &NodeView,
    relay: SocketAddr,
    backend: &BackendView,
    key: &RelayKey,
    ends: Ends,
) -> Result<TcpStream, DialError> {
    let mut stream = connect(relay, Some(view.address.into())).await?;
    let preamble = Preamble {
        backend: backend.id,
        client: ends.client,
        destination: ends.destination,
        made_unix_ms: unix_ms(),
        nonce: rand::random::<[u8; NONCE_LENGTH]>(),
    };
    let exchange = async {
        stream.write_all(&preamble.sign(key)).await?;
        stream.read_u8().await
    };
    let answer = timeout(ANSWER_DEADLINE, exchange)
        .await
        .map_err(|_| DialError::Deadline { address: relay })?
        .map_err(|source| DialError::Connect { address: relay, source })?;
    match Answer::from_byte(answer) {
        Some(Answer::Connected) => Ok(stream),
        answer => Err(DialError::Relay { relay, answer }),
    }
}

async fn connect(address: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, DialError> {
    let failed = |source| DialError::Connect { address, source };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0)).map_err(failed)?;
    }
    let stream = timeout(CONNECT_DEADLINE, socket.connect(address))
        .await
        .map_err(|_| DialError::Deadline { address })?
        .map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// The wall clock, milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
