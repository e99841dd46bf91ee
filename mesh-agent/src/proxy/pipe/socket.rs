//! recv(2) and send(2) on a socket of the event loop, as raw system calls: the C library's wrappers
//! are thread cancellation points with extra work around each call, and no thread here is ever
//! cancelled.
//!
//! Invariant: a short read (or write) has emptied (or filled) the socket's buffer, so the next call
//! waits for the event without trying: events are edge-triggered, and one that arrives meanwhile is
//! not lost.

use std::io;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Receives into `buffer`; 0 means end of file.
pub(super) fn poll_recv(
    cx: &mut Context<'_>,
    stream: &TcpStream,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let size = buffer.len();
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let receive = || Ok(recv(stream, &mut *buffer, RecvFlags::empty())?.0);
        if let Some(result) = attempt(stream, Interest::READABLE, size, receive) {
            return Poll::Ready(result);
        }
    }
}

/// Sends some of `bytes`.
pub(super) fn poll_send(cx: &mut Context<'_>, stream: &TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        let transmit = || Ok(send(stream, bytes, SendFlags::NOSIGNAL)?);
        if let Some(result) = attempt(stream, Interest::WRITABLE, bytes.len(), transmit) {
            return Poll::Ready(result);
        }
    }
}

/// One call for at most `size` bytes; `None` if it would block.
fn attempt(
    stream: &TcpStream,
    interest: Interest,
    size: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> Option<io::Result<usize>> {
    let mut moved = None;
    let result = stream.try_io(interest, || {
        let length = call()?;
        moved = Some(length);
        // Within the closure, so that the event loop clears the event that preceded the call, and
        // none that came since.
        if 0 < length && length < size { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (moved, result) {
        (Some(length), _) => Some(Ok(length)),
        (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Some(Err(error)),
        (None, _) => None,
    }
}
