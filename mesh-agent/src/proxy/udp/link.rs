//! The link between a UDP flow and its task: a socket connected to the task, or frames on a
//! connection between nodes.
//!
//! A frame is a datagram's length (2 bytes, network order) and its bytes.
//!
//! Invariants: a datagram that the kernel doesn't take is dropped, as any may be; only a task's
//! refusal and the end of the connection are errors. Receiving can be cancelled at any await
//! without losing bytes. A flow that waits keeps little memory.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UdpSocket};

/// The most bytes in a datagram.
pub(super) const DATAGRAM_MAX: usize = 65_535;
const LENGTH_BYTES: usize = 2;
/// Initial size of the buffer of frames; it grows for larger ones.
const FRAMES_ROOM: usize = 2 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM_MAX]);
}

/// The sending half of a link.
pub(super) enum Sender {
    /// To a task on this node.
    Task(Arc<UdpSocket>),
    /// To another node; the buffer holds the frame being written.
    Node(OwnedWriteHalf, Vec<u8>),
}

/// The receiving half of a link.
pub(super) enum Receiver {
    /// From a task on this node.
    Task(Arc<UdpSocket>),
    /// From another node.
    Node(Frames),
}

/// Reads frames from a connection.
pub(super) struct Frames {
    stream: OwnedReadHalf,
    bytes: Vec<u8>,
    filled: usize,
    taken: usize,
}

/// Opens a link to a task on this node.
///
/// # Errors
/// No file descriptor is left, or there is no route to the task.
pub(super) async fn to_task(task: SocketAddr) -> io::Result<(Sender, Receiver)> {
    let any: SocketAddr =
        if task.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(task).await?;
    let socket = Arc::new(socket);
    Ok((Sender::Task(Arc::clone(&socket)), Receiver::Task(socket)))
}

/// Makes a link of a connection between nodes.
pub(super) fn to_node(stream: TcpStream) -> (Sender, Receiver) {
    let (read, write) = stream.into_split();
    let frames = Frames { stream: read, bytes: vec![0; FRAMES_ROOM], filled: 0, taken: 0 };
    (Sender::Node(write, Vec::new()), Receiver::Node(frames))
}

impl Sender {
    /// Sends a datagram, or drops it.
    ///
    /// # Errors
    /// The task refuses, or the connection ended.
    pub(super) async fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        match self {
            Self::Task(socket) => match socket.send(datagram).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
                Err(error) => {
                    tracing::debug!(error = mesh_runtime::error_chain(&error), "drop a datagram to a task");
                    Ok(())
                }
                Ok(_) => Ok(()),
            },
            Self::Node(stream, frame) => {
                let Ok(length) = u16::try_from(datagram.len()) else { return Ok(()) };
                frame.clear();
                frame.extend_from_slice(&length.to_be_bytes());
                frame.extend_from_slice(datagram);
                stream.write_all(frame).await
            }
        }
    }
}

impl Receiver {
    /// Receives the next datagram into `datagram`; `false` once the other node has ended the link.
    ///
    /// # Errors
    /// The task refuses, or the connection broke.
    pub(super) async fn receive(&mut self, datagram: &mut Vec<u8>) -> io::Result<bool> {
        datagram.clear();
        match self {
            Self::Task(socket) => loop {
                socket.readable().await?;
                let received = BUFFER.with_borrow_mut(|buffer| {
                    socket.try_recv(buffer).map(|length| datagram.extend_from_slice(&buffer[..length]))
                });
                match received {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result.map(|()| true),
                }
            },
            Self::Node(frames) => frames.next(datagram).await,
        }
    }
}

impl Frames {
    async fn next(&mut self, datagram: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let start = self.taken + LENGTH_BYTES;
            let mut wanted = LENGTH_BYTES;
            if let Some(&[high, low]) = self.bytes[..self.filled].get(self.taken..start) {
                let length = usize::from(u16::from_be_bytes([high, low]));
                let end = start + length;
                if end <= self.filled {
                    datagram.extend_from_slice(&self.bytes[start..end]);
                    self.taken = end;
                    return Ok(true);
                }
                wanted += length;
            }
            self.bytes.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
            if wanted > self.bytes.len() {
                self.bytes.resize(wanted, 0);
            }
            let length = self.stream.read(&mut self.bytes[self.filled..]).await?;
            if length == 0 {
                return Ok(false);
            }
            self.filled += length;
        }
    }
}
