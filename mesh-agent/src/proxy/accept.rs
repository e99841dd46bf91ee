//! Taking connections from a bound socket, as many as there is room for.
//!
//! Invariants: room is taken before a connection is, so that a full proxy leaves new clients in the kernel's queue; an error of
//! `accept` never ends a listener, nor lets it spin.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Connections that the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;
/// How long to wait after an error of `accept` (no descriptors left, say).
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Binds `address`, for IPv6's "any" with IPv4 as well; where there is no IPv6, IPv4's "any" is bound instead.
///
/// # Errors
/// As the kernel says; an address in use is [`io::ErrorKind::AddrInUse`].
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let any_v6 = address.is_ipv6() && address.ip().is_unspecified();
    match bind_one(address) {
        Err(error)
            if any_v6
                && matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
                ) =>
        {
            bind_one(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        }
        result => result,
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until `stop`, giving each connection, its peer and its share of `room` to `serve`.
pub(super) async fn accept_until(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    stop: &CancellationToken,
    mut serve: impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let accept = async {
        loop {
            let Ok(permit) = Arc::clone(room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    serve(stream, SocketAddr::new(peer.ip().to_canonical(), peer.port()), permit);
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = stop.cancelled() => {}
    }
}
