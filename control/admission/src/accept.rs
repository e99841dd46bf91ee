//! Accepts connections of a listening socket: no faster than descriptors allow, and no more than
//! its door admits.
//!
//! Invariant: an error of `accept` neither ends a listener nor makes it spin.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::door::Door;
use crate::figures::ACCEPT_PAUSE;
use crate::refusals::Reason;
use crate::stream::Admitted;

/// A listening socket.
pub trait ConnectionSource: Send + Sync + 'static {
    /// The type of its connections.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, with its peer's address if it has one.
    fn take(&self) -> impl Future<Output = io::Result<(Self::Io, Option<SocketAddr>)>> + Send;
}

impl ConnectionSource for TcpListener {
    type Io = TcpStream;

    async fn take(&self) -> io::Result<(Self::Io, Option<SocketAddr>)> {
        let (stream, peer) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, Some(peer)))
    }
}

impl ConnectionSource for UnixListener {
    type Io = UnixStream;

    async fn take(&self) -> io::Result<(Self::Io, Option<SocketAddr>)> {
        Ok((self.accept().await?.0, None))
    }
}

/// The next connection of `source`. Counts errors of the listener, and pauses after them.
pub async fn next<S: ConnectionSource>(source: &S, door: &Door) -> (S::Io, Option<SocketAddr>) {
    loop {
        match source.take().await {
            Ok(taken) => return taken,
            // The connection ended in the queue.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                door.refuse(Reason::Descriptors, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | NotConnected | InvalidInput
    )
}

/// The connections of `listener` that `door` admits, each of which must prove its membership in
/// time; the others are closed. Never ends.
pub fn proven(
    listener: TcpListener,
    door: Arc<Door>,
    keepalive: Duration,
) -> impl Stream<Item = Result<Admitted<TcpStream>, Infallible>> {
    stream::unfold((listener, door), move |(listener, door)| async move {
        loop {
            let (stream, peer) = next(&listener, &door).await;
            let Ok(place) = door.admit(peer) else { continue };
            if let Err(error) = keep_alive(&stream, keepalive) {
                tracing::debug!(%error, "watch a connection");
            }
            return Some((Ok(Admitted::new(stream, Arc::new(place), true)), (listener, door)));
        }
    })
}

/// Lets the kernel probe a connection that is idle for `after`, so that one whose peer is gone
/// ends.
///
/// # Errors
/// The socket is no TCP connection any more.
pub fn keep_alive(stream: &TcpStream, after: Duration) -> rustix::io::Result<()> {
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, after)
}
