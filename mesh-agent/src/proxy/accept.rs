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

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn any_address_takes_both_families_and_shows_ipv4_as_such() {
        let listener = bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (room, stop) = (Arc::new(Semaphore::new(4)), CancellationToken::new());
        let (peers, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let (serving, stopping) = (Arc::clone(&room), stop.clone());
        let accepting = tokio::spawn(async move {
            accept_until(&listener, &serving, &stopping, |_, peer, _| peers.send(peer.ip()).expect("seen"))
                .await;
        });
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            match TcpStream::connect((address, port)).await {
                Ok(_) => assert_eq!(seen.recv().await, Some(address)),
                Err(error) => assert!(address.is_ipv6(), "connect over IPv4: {error}"),
            }
        }
        stop.cancel();
        accepting.await.expect("the listener ends");
    }

    #[tokio::test]
    async fn without_room_clients_wait_in_the_queue() {
        let listener = bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let (room, stop) = (Arc::new(Semaphore::new(1)), CancellationToken::new());
        let stopping = stop.clone();
        let accepting = tokio::spawn(async move {
            accept_until(&listener, &room, &stopping, |mut stream, _, permit| {
                tokio::spawn(async move {
                    stream.write_all(b"!").await.expect("the client listens");
                    let until_its_end = stream.read_u8().await;
                    drop((permit, until_its_end));
                });
            })
            .await;
        });
        let mut first = TcpStream::connect(address).await.expect("it connects");
        assert_eq!(first.read_u8().await.expect("it is served"), b'!');
        let mut second = TcpStream::connect(address).await.expect("the kernel takes it");
        let waits = timeout(Duration::from_millis(50), second.read_u8()).await;
        assert!(waits.is_err(), "the second was served beside the first");
        drop(first);
        let served = timeout(Duration::from_secs(5), second.read_u8()).await;
        assert_eq!(served.expect("soon after the first has ended").expect("it is served"), b'!');
        stop.cancel();
        accepting.await.expect("the listener ends");
    }

    #[tokio::test]
    async fn an_address_in_use_is_said_to_be() {
        let holder = bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).expect("a port");
        let error = bind(holder.local_addr().expect("its address")).expect_err("it is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
