//! The sockets of the name server: UDP and TCP on port 53 of each of its addresses.
//!
//! Invariants: sockets are bound before their address exists, so the server answers as soon as a
//! task can ask. A service may still publish the port: the proxy's socket, bound to all addresses,
//! gets packets to all other addresses. If another program has the port, binding is retried.
//! TCP clients may keep their connections, up to the limits of the door.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use mesh_admission::accept;
use mesh_admission::figures::names::QUESTION_BYTES;
use mesh_admission::refusals::Reason;
use mesh_admission::register::Call;
use mesh_admission::stream::Admitted;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::server::{Answer, Server};
use super::wire::Transport;

/// The pause before a port that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Length of the queue of TCP connections that the server has not accepted yet.
const BACKLOG: i32 = 128;

/// Serves tasks at `address` until `stop`.
pub(super) async fn serve(server: Arc<Server>, address: SocketAddrV4, stop: CancellationToken) {
    let mut was_refused = false;
    let (udp, tcp) = loop {
        match bind(address) {
            Ok(sockets) => break sockets,
            Err(error) => {
                server.counts.listens(*address.ip(), false);
                if !std::mem::replace(&mut was_refused, true) {
                    tracing::error!(
                        %address,
                        %error,
                        "can't serve names to tasks: end whatever else listens on this port of all addresses"
                    );
                }
            }
        }
        if stop.run_until_cancelled(sleep(RETRY)).await.is_none() {
            server.counts.leaves(*address.ip());
            return;
        }
    };
    tracing::info!(%address, "serve names to this node's tasks");
    server.counts.listens(*address.ip(), true);
    let tasks = TaskTracker::new();
    let serving = async {
        tokio::join!(
            serve_datagrams(&server, Arc::new(udp), &tasks),
            serve_connections(&server, &tcp, &tasks, &stop)
        )
    };
    stop.run_until_cancelled(serving).await;
    server.counts.leaves(*address.ip());
}

/// Binds both sockets. The address need not exist yet.
fn bind(address: SocketAddrV4) -> io::Result<(UdpSocket, TcpListener)> {
    let address = SocketAddr::from(address);
    let udp = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    udp.set_freebind_v4(true)?;
    udp.set_reuse_port(true)?;
    udp.set_nonblocking(true)?;
    udp.bind(&address.into())?;
    let tcp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    tcp.set_freebind_v4(true)?;
    tcp.set_reuse_port(true)?;
    // Connections of an earlier agent may still be in TIME_WAIT.
    tcp.set_reuse_address(true)?;
    tcp.set_nonblocking(true)?;
    tcp.bind(&address.into())?;
    tcp.listen(BACKLOG)?;
    Ok((UdpSocket::from_std(udp.into())?, TcpListener::from_std(tcp.into())?))
}

async fn serve_datagrams(server: &Arc<Server>, socket: Arc<UdpSocket>, tasks: &TaskTracker) {
    // One byte more than the limit, so that a longer datagram is recognised.
    let mut buffer = vec![0; QUESTION_BYTES + 1];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error about an earlier answer, or lack of memory: the socket is still good.
            Err(error) => {
                tracing::debug!(%error, "receive a question");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let IpAddr::V4(from) = source.ip() else { continue };
        match server.begin(from, &buffer[..length], Transport::Udp) {
            Answer::Never => {}
            Answer::Now(reply) => send(&socket, &reply, source).await,
            Answer::Later(later) => {
                let (server, socket) = (Arc::clone(server), Arc::clone(&socket));
                tasks.spawn(async move {
                    let reply = server.finish(later).await;
                    send(&socket, &reply, source).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%to, %error, "send an answer");
    }
}

async fn serve_connections(
    server: &Arc<Server>,
    listener: &TcpListener,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    loop {
        let (stream, peer) = accept::next(listener, &server.door).await;
        let Ok(place) = server.door.admit(peer) else { continue };
        let Some(IpAddr::V4(from)) = peer.map(|peer| peer.ip()) else { continue };
        let (server, stop) = (Arc::clone(server), stop.clone());
        let place = Arc::new(place);
        let stream = Admitted::new(stream, Arc::clone(&place), false);
        tasks.spawn(async move {
            let connection = async {
                let mut connection = Connection { server, stream, from };
                // A question counts as in service until its answer is written.
                while let Some(question) = connection.read().await? {
                    let Ok(_in_service) = place.begin(Call::Short) else { break };
                    connection.answer(&question).await?;
                }
                io::Result::Ok(())
            };
            if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
                tracing::debug!(%from, %error, "serve a client by TCP");
            }
        });
    }
}

/// A TCP connection of a client.
struct Connection {
    server: Arc<Server>,
    stream: Admitted<TcpStream>,
    from: Ipv4Addr,
}

impl Connection {
    /// The next question; `None` at the end of the connection.
    async fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let door = Arc::clone(&self.server.door);
        let stream = &mut self.stream;
        let read = async {
            let length = match stream.read_u16().await {
                Ok(length) => usize::from(length),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            };
            if length > QUESTION_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the question is too long"));
            }
            let mut question = vec![0; length];
            stream.read_exact(&mut question).await?;
            Ok(Some(question))
        };
        match timeout(door.figures().wait, read).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                door.refuse(Reason::TooLarge, &self.from);
                Err(error)
            }
            Ok(read) => read,
            Err(_) => {
                // A client that keeps its connection, but sends no further question in time.
                door.count(Reason::WaitedTooLong);
                Ok(None)
            }
        }
    }

    async fn answer(&mut self, question: &[u8]) -> io::Result<()> {
        let reply = match self.server.begin(self.from, question, Transport::Tcp) {
            Answer::Now(reply) => reply,
            Answer::Later(later) => self.server.finish(later).await,
            Answer::Never => return Err(io::Error::new(io::ErrorKind::InvalidData, "no question")),
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        self.stream.write_all(&[&length.to_be_bytes()[..], &reply].concat()).await
    }
}
