//! Connecting to a backend: directly if its task runs here, through its node's relay if not.
//!
//! Invariants: every attempt has a deadline; a remote backend counts as connected only once its relay says so.

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

/// A task that does not answer within this is passed over. A SYN is repeated after a second: one may be lost, as when many
/// come at once to a task that accepts slowly.
const CONNECT_DEADLINE: Duration = Duration::from_millis(2500);
/// A relay has its own deadline for the task, and needs time to say so.
const ANSWER_DEADLINE: Duration = Duration::from_millis(3500);

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
    /// The task refused a datagram.
    #[error("backend {} refuses datagrams", backend.get())]
    Refused {
        /// The backend.
        backend: BackendId,
    },
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

/// Who connected to what.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The client.
    pub client: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

/// Connects to a task on this node; tells it who connected, if its service wants that.
///
/// # Errors
/// It can't be reached, or refuses.
pub(super) async fn dial_task(address: SocketAddr, tells: Option<Ends>) -> Result<TcpStream, DialError> {
    let mut stream = connect(address, None).await?;
    if let Some(ends) = tells {
        let header = Header::new(ends);
        // The socket is new, so that its buffer takes this at once.
        stream.write_all(header.bytes()).await.map_err(|source| DialError::Connect { address, source })?;
    }
    Ok(stream)
}

/// How relays are asked.
pub(super) struct Asking<'a> {
    /// This node's address.
    pub(super) source: Option<IpAddr>,
    /// The good keys.
    pub(super) keys: &'a RelayKeys,
    /// Connections that wait.
    pub(super) warm: &'a Arc<Warm>,
}

/// Connects to a task on another node, through that node's relay. What comes back answers to the next session's challenge, once this one
/// has ended.
///
/// # Errors
/// The relay or the task can't be reached, or refuses.
pub(super) async fn dial_relay(
    asking: &Asking<'_>,
    relay: SocketAddr,
    backend: BackendId,
    ends: Ends,
) -> Result<Greeted, DialError> {
    let mut last = DialError::NoKey;
    // While keys rotate the other node may still hold only the key before.
    for key in asking.keys.iter() {
        match ask_relay(asking, relay, backend, key, ends).await {
            Err(error @ DialError::Relay { answer: Some(Answer::Denied), .. }) => last = error,
            result => return result,
        }
    }
    Err(last)
}

async fn ask_relay(
    asking: &Asking<'_>,
    relay: SocketAddr,
    backend: BackendId,
    key: &RelayKey,
    ends: Ends,
) -> Result<Greeted, DialError> {
    if let Some(greeted) = asking.warm.take(relay, asking.source) {
        match ask(greeted, relay, backend, key, ends).await {
            // It broke while it waited: its relay was restarted, say.
            Err(DialError::Connect { .. }) => {}
            result => return result,
        }
    }
    ask(warm::open(relay, asking.source).await?, relay, backend, key, ends).await
}

async fn ask(
    greeted: Greeted,
    relay: SocketAddr,
    backend: BackendId,
    key: &RelayKey,
    ends: Ends,
) -> Result<Greeted, DialError> {
    let Greeted { mut stream, challenge } = greeted;
    let Ends { client, destination } = ends;
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
/// Nobody is there, or answers in time.
pub(super) async fn connect(address: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, DialError> {
    let failed = |source| DialError::Connect { address, source };
    let stream = begin(address, source).map_err(failed)?;
    let ready = timeout(CONNECT_DEADLINE, stream.ready(Interest::WRITABLE | Interest::ERROR))
        .await
        .map_err(|_| DialError::Deadline { address })?
        .map_err(failed)?;
    // The event tells whether there is an error to ask for.
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
        // The port is chosen by the connection's other end too, so that there are enough of them.
        switch_on(&socket, Switch::BindAddressNoPort)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => TcpStream::from_std(socket.into()),
    }
}
