//! Connects to a backend: directly if its task runs on this node, else through the relay of the
//! task's node.
//!
//! Invariants: every attempt has a deadline; a remote backend counts as connected only once its
//! relay says so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::BackendId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::addresses::ConnectionAddresses;
use super::connect::connect;
use super::dial_error::DialError;
use super::preamble::{self, Answer, Preamble};
use super::proxy_protocol::Header;
use super::warm::{self, Greeted, Warm};
use crate::control_link::relay_keys::{RelayKey, RelayKeys};

/// The deadline of a relay's answer. It is longer than that of a connection to the task
/// ([`CONNECT_DEADLINE`](super::connect::CONNECT_DEADLINE)), which the relay applies, so that the
/// relay can report the timeout.
const ANSWER_DEADLINE: Duration = Duration::from_millis(3500);

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
