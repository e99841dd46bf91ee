//! Accepts connections from a listening socket, as many as there is room for.
//!
//! Invariants: a listener takes a permit before it accepts, so that a full proxy leaves new clients
//! in the kernel's backlog; a socket without clients takes no permit; an error of `accept` neither
//! ends a listener nor makes it spin.

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::names::DNS_PORT;

/// The backlog: connections that the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;
/// How long a listener waits after an error of `accept` (no file descriptors left, say).
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket. Several threads may accept from its one backlog.
#[derive(Debug)]
pub struct Listening(Socket);

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listening {
    /// Duplicates the descriptor for another thread, which then accepts from the same backlog.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub(super) fn share(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

/// Listens for connections to `address`; see [`bind`].
///
/// # Errors
/// The kernel's error; an address in use is [`io::ErrorKind::AddrInUse`].
pub(super) fn listen(address: SocketAddr) -> io::Result<Listening> {
    let socket = bind(address, Type::STREAM)?;
    // Accepted sockets inherit this option.
    socket.set_tcp_nodelay(true)?;
    socket.listen(BACKLOG)?;
    Ok(Listening(socket))
}

/// Binds `address`. IPv6's wildcard takes IPv4 as well; on a host without IPv6, IPv4's wildcard is
/// bound instead. The port of DNS is shared with the node's own name server, which has it at the
/// addresses that its tasks ask; another process that allows sharing as well isn't noticed here.
///
/// # Errors
/// The kernel's error; an address in use is [`io::ErrorKind::AddrInUse`].
pub(super) fn bind(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let any_v6 = address.is_ipv6() && address.ip().is_unspecified();
    match bind_one(address, kind) {
        Err(error)
            if any_v6
                && matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
                ) =>
        {
            bind_one(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()), kind)
        }
        result => result,
    }
}

fn bind_one(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if kind == Type::STREAM {
        // For UDP this option would let two sockets share one port.
        socket.set_reuse_address(true)?;
    }
    if address.port() == DNS_PORT {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Accepts until `stop` and gives each connection, its peer and its permit of `room` to `serve`.
/// `serve` chooses the thread whose event loop watches the connection.
pub(super) async fn accept_until(
    listening: Listening,
    room: &Arc<Semaphore>,
    stop: &CancellationToken,
    mut serve: impl FnMut(std::net::TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let accept = async {
        // SAFETY: the socket owns its descriptor, and nothing closes it before the queue is
        // dropped.
        let queue = match unsafe { AsyncFd::register_with_interest(listening.0, Interest::READABLE) } {
            Ok(queue) => queue,
            Err(error) => {
                tracing::error!(error = mesh_runtime::error_chain(&error), "watch a listening socket");
                return pending().await;
            }
        };
        loop {
            match accept_all(&queue, room, &mut serve).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(error = mesh_runtime::error_chain(&error), "accept a connection");
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

/// Accepts for ever; returns `Ok` only when `room` is closed.
async fn accept_all(
    queue: &AsyncFd<Socket>,
    room: &Arc<Semaphore>,
    serve: &mut impl FnMut(std::net::TcpStream, SocketAddr, OwnedSemaphorePermit),
) -> io::Result<()> {
    loop {
        let mut ready = queue.readable().await?;
        loop {
            let Ok(permit) = Arc::clone(room).acquire_owned().await else { return Ok(()) };
            match ready.try_io(|queue| accept_one(queue.get_ref())) {
                Ok(Ok((stream, peer))) => serve(stream, peer, permit),
                // The client aborted the connection while it was in the backlog.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Ok(Err(error)) => return Err(error),
                Err(_nothing_waits) => break,
            }
        }
    }
}

fn accept_one(socket: &Socket) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let (stream, peer) = acceptfrom_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let peer =
        peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((stream.into(), SocketAddr::new(peer.ip().to_canonical(), peer.port())))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    fn address_of(listening: &Listening) -> SocketAddr {
        listening.0.local_addr().expect("its address").as_socket().expect("an IP address")
    }

    #[tokio::test]
    async fn any_address_takes_both_families_and_shows_ipv4_as_such() {
        let listener = listen(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)).expect("a port");
        let port = address_of(&listener).port();
        let (room, stop) = (Arc::new(Semaphore::new(4)), CancellationToken::new());
        let (peers, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let (serving, stopping) = (Arc::clone(&room), stop.clone());
        let accepting = tokio::spawn(async move {
            accept_until(listener, &serving, &stopping, |_, peer, _| peers.send(peer.ip()).expect("seen"))
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
        let listener = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).expect("a port");
        let address = address_of(&listener);
        let (room, stop) = (Arc::new(Semaphore::new(1)), CancellationToken::new());
        let stopping = stop.clone();
        let accepting = tokio::spawn(async move {
            accept_until(listener, &room, &stopping, |stream, _, permit| {
                tokio::spawn(async move {
                    let mut stream = TcpStream::from_std(stream).expect("it is watched");
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
        let holder = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).expect("a port");
        let error = listen(address_of(&holder)).expect_err("it is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
