//! TCP connections to tasks and relays, each with a deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dial_error::DialError;
use super::sockopt::{Switch, switch_on};

/// The deadline of a connection to a task. It leaves time for one retransmitted SYN, which the
/// kernel sends after a second: a SYN may be dropped when many reach a task that accepts slowly.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_millis(2500);
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
