//! The two ends of one direction: where its bytes are read and where they are written, framed if
//! the connection is between nodes.
//!
//! Invariants: a connection between nodes that ends within a frame, or between two, ends its
//! session as broken, never as complete; a frame marks the end of a session's direction, a
//! half-close that of any other.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::framing::{Incoming, Outgoing};
use super::socket;

/// The socket from which a direction's bytes are read.
pub(super) struct ByteSource<'a> {
    half: ReadHalf<'a>,
    frames: Option<Incoming>,
}

/// The socket to which a direction's bytes are written.
pub(super) struct ByteSink<'a> {
    half: WriteHalf<'a>,
    frames: Option<Outgoing>,
}

impl<'a> ByteSource<'a> {
    pub(super) fn new(half: ReadHalf<'a>, is_framed: bool) -> Self {
        Self { half, frames: is_framed.then(Incoming::default) }
    }

    /// Reads payload to the front of `buffer`; 0 means the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            if self.has_ended_framed() {
                return Poll::Ready(Ok(0));
            }
            let length = ready!(socket::poll_recv(cx, self.half.as_ref(), buffer))?;
            let Some(frames) = &mut self.frames else { return Poll::Ready(Ok(length)) };
            if length == 0 {
                let end = if frames.is_plain() { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                return Poll::Ready(end);
            }
            let payload = frames
                .take(&mut buffer[..length])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if payload > 0 {
                return Poll::Ready(Ok(payload));
            }
        }
    }

    /// The connection, if it carries nothing but payload.
    pub(super) fn plain(&self) -> Option<&TcpStream> {
        let is_plain = self.frames.as_ref().is_none_or(Incoming::is_plain);
        is_plain.then(|| self.half.as_ref())
    }

    /// Whether the session's direction has ended and the connection can be read for another
    /// session.
    pub(super) fn has_ended_framed(&self) -> bool {
        self.frames.as_ref().is_some_and(Incoming::has_ended)
    }
}

impl<'a> ByteSink<'a> {
    pub(super) fn new(half: WriteHalf<'a>, is_framed: bool) -> Self {
        Self { half, frames: is_framed.then(Outgoing::default) }
    }

    /// Writes some of `bytes`. The caller must pass what isn't taken first the next time,
    /// unchanged: a frame may have been begun for it.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(frames) = &mut self.frames else { return socket::poll_send(cx, self.half.as_ref(), bytes) };
        loop {
            frames.announce(bytes.len());
            let bytes = &bytes[..bytes.len().min(frames.room())];
            let ahead = frames.ahead();
            let written = if ahead.is_empty() {
                ready!(socket::poll_send(cx, self.half.as_ref(), bytes))?
            } else {
                let both = [IoSlice::new(ahead), IoSlice::new(bytes)];
                ready!(Pin::new(&mut self.half).poll_write_vectored(cx, &both))?
            };
            let payload = frames.wrote(written);
            if payload > 0 || written == 0 {
                return Poll::Ready(Ok(payload));
            }
        }
    }

    /// Writes the end of the direction.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(frames) = &mut self.frames {
            frames.end();
            while !frames.ahead().is_empty() {
                let written = ready!(Pin::new(&mut self.half).poll_write(cx, frames.ahead()))?;
                frames.wrote(written);
            }
            if frames.has_ended() {
                return Poll::Ready(Ok(()));
            }
        }
        match ready!(Pin::new(&mut self.half).poll_shutdown(cx)) {
            // The peer has closed both directions already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }

    /// The connection, if it carries nothing but payload.
    pub(super) fn plain(&self) -> Option<&TcpStream> {
        let is_plain =
            self.frames.as_ref().is_none_or(|frames| frames.is_plain() && frames.ahead().is_empty());
        is_plain.then(|| self.half.as_ref())
    }

    /// Whether the end must be written even if both directions are over.
    pub(super) fn must_write_end(&self) -> bool {
        self.frames.as_ref().is_some_and(|frames| !frames.is_plain())
    }

    /// Whether the session's direction has ended and the connection can carry another session.
    pub(super) fn has_ended_framed(&self) -> bool {
        self.frames.as_ref().is_some_and(Outgoing::has_ended)
    }
}
