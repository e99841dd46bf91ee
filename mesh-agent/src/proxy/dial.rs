//! Connects to a backend: directly if its task runs on this node, else through the relay of the
//! task's node.
//!
//! Invariants: every attempt has a deadline; a remote backend counts as connected only once its
//! relay says so.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::{BackendId, NodeId};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::preamble::{self, Answer, Preamble};
use super::proxy_protocol::Header;
use super::sockopt::{Switch, switch_on};
use super::warm::{self, Greeted, Warm};
use crate::control_link::relay_keys::{RelayKey, RelayKeys};

/// The deadline of a connection to a task. It leaves time for one retransmitted SYN, which the
/// kernel sends after a second: a SYN may be dropped when many reach a task that accepts slowly.
const CONNECT_DEADLINE: Duration = Duration::from_millis(2500);
/// The deadline of a relay's answer. It is longer than [`CONNECT_DEADLINE`], which the relay
/// applies to the task, so that the relay can report the timeout.
const ANSWER_DEADLINE: Duration = Duration::from_millis(3500);

/// Why a backend could not be connected to.
#[derive(Debug, Error)]
pub enum DialError {
    /// The connection to the task or the relay failed.
    #[error("connect to {address}")]
    Connect {
        /// The task's or the relay's address.
        address: SocketAddr,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The task or the relay did not answer in time.
    #[error("no answer from {address} in time")]
    Deadline {
        /// The task's or the relay's address.
        address: SocketAddr,
    },
    /// The backend's node is not in the view.
    #[error("node {0} is not in the mesh table")]
    UnknownNode(NodeId),
    /// No manager has sent a relay key yet.
    #[error("no relay key yet: a manager must be reached once")]
    NoKey,
    /// The task refused a datagram (ICMP port unreachable).
    #[error("backend {} refuses datagrams", backend.get())]
    Refused {
        /// The backend's id.
        backend: BackendId,
    },
    /// The relay answered, but did not connect.
    #[error("relay {relay} answered {answer:?}")]
    Relay {
        /// The relay's address.
        relay: SocketAddr,
        /// The relay's answer; `None` if this version doesn't know it.
        answer: Option<Answer>,
    },
}

/// Why an attempt failed, as a label of metrics.
#[repr(usize)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    /// The peer did not answer in time.
    Timeout = 0,
    /// The task refused the connection.
    Reset = 1,
    /// There is no way to the task: no route, no key, or its relay does not connect.
    Unreachable = 2,
}

impl FailureReason {
    /// Every reason, in the order of the numbers.
    pub const ALL: [Self; 3] = [Self::Timeout, Self::Reset, Self::Unreachable];

    /// The value of the metrics' label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
        }
    }
}

impl DialError {
    /// Classifies the error for the counters.
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Deadline { .. } | Self::Relay { answer: Some(Answer::Timeout), .. } => {
                FailureReason::Timeout
            }
            Self::Relay { answer: Some(Answer::Refused), .. } | Self::Refused { .. } => FailureReason::Reset,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                FailureReason::Reset
            }
            Self::Connect { .. } | Self::UnknownNode(_) | Self::NoKey | Self::Relay { .. } => {
                FailureReason::Unreachable
            }
        }
    }
}

/// The two addresses of a client's connection, as the client sees them.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionAddresses {
    /// The client's address.
    pub client: SocketAddr,
    /// The published address and port that the client connected to.
    pub destination: SocketAddr,
}

/// Connects to a task on this node, and sends it a PROXY header if `header` is given.
///
/// # Errors
/// The task can't be reached, or refuses.
pub(super) async fn dial_task(
    address: SocketAddr,
    header: Option<ConnectionAddresses>,
) -> Result<TcpStream, DialError> {
    let mut stream = connect(address, None).await?;
    if let Some(addresses) = header {
        let header = Header::new(addresses);
        // The socket is new, so its send buffer takes the header at once.
        stream.write_all(header.bytes()).await.map_err(|source| DialError::Connect { address, source })?;
    }
    Ok(stream)
}

/// What every request to a relay needs.
pub(super) struct RelayAccess<'a> {
    /// This node's address, which the relay checks against the members.
    pub(super) source: Option<IpAddr>,
    /// The valid relay keys, newest first.
    pub(super) keys: &'a RelayKeys,
    /// The pool of idle connections to relays.
    pub(super) warm: &'a Arc<Warm>,
}

/// Connects to a task on another node through that node's relay. The returned challenge is the one
/// that the connection's next session must answer.
///
/// # Errors
/// The relay or the task can't be reached, or refuses.
pub(super) async fn dial_relay(
    access: &RelayAccess<'_>,
    relay: SocketAddr,
    backend: BackendId,
    addresses: ConnectionAddresses,
) -> Result<Greeted, DialError> {
    let mut last = DialError::NoKey;
    // While keys rotate, the other node may still hold only the previous key.
    for key in access.keys.iter() {
        match ask_relay(access, relay, backend, key, addresses).await {
            Err(error @ DialError::Relay { answer: Some(Answer::Denied), .. }) => last = error,
            result => return result,
        }
    }
    Err(last)
}

async fn ask_relay(
    access: &RelayAccess<'_>,
    relay: SocketAddr,
    backend: BackendId,
    key: &RelayKey,
    addresses: ConnectionAddresses,
) -> Result<Greeted, DialError> {
    if let Some(greeted) = access.warm.take(relay, access.source) {
        match ask(greeted, relay, backend, key, addresses).await {
            // The pooled connection broke while it was idle, for example because its relay
            // restarted.
            Err(DialError::Connect { .. }) => {}
            result => return result,
        }
    }
    ask(warm::open(relay, access.source).await?, relay, backend, key, addresses).await
}

async fn ask(
    greeted: Greeted,
    relay: SocketAddr,
    backend: BackendId,
    key: &RelayKey,
    addresses: ConnectionAddresses,
) -> Result<Greeted, DialError> {
    let Greeted { mut stream, challenge } = greeted;
    let ConnectionAddresses { client, destination } = addresses;
    let asked = Preamble { backend, client, destination, challenge }.sign(key);
    let exchange = async {
        stream.write_all(&asked).await?;
        stream.read_u8().await
    };
    let answer = timeout(ANSWER_DEADLINE, exchange)
        .await
        .map_err(|_| DialError::Deadline { address: relay })?
        .map_err(|source| DialError::Connect { address: relay, source })?;
    match Answer::from_byte(answer) {
        Some(Answer::Connected) => Ok(Greeted { stream, challenge: preamble::next(challenge) }),
        answer => Err(DialError::Relay { relay, answer }),
    }
}

/// Connects to `address`, from `source` if given.
///
/// # Errors
/// The connection is refused, or not accepted in time.
pub(super) async fn connect(address: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, DialError> {
    let failed = |source| DialError::Connect { address, source };
    let stream = begin(address, source).map_err(failed)?;
    let ready = timeout(CONNECT_DEADLINE, stream.ready(Interest::WRITABLE | Interest::ERROR))
        .await
        .map_err(|_| DialError::Deadline { address })?
        .map_err(failed)?;
    // The event says whether there can be a socket error to fetch; without one the syscall is
    // saved.
    if (ready.is_error() || ready.is_write_closed())
        && let Some(error) = stream.take_error().map_err(failed)?
    {
        return Err(failed(error));
    }
    Ok(stream)
}

fn begin(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if let Some(source) = source {
        // The kernel chooses the port at connect(2), when it knows the peer, so that each peer has
        // a whole range of ports.
        switch_on(&socket, Switch::BindAddressNoPort)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => TcpStream::from_std(socket.into()),
    }
}
