//! A connection with its place: closed when it is evicted, when it waits too long, or when its
//! client doesn't read.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::door::Place;
use crate::refusals::Reason;

/// An admitted connection.
#[derive(Debug)]
pub struct Admitted<T> {
    io: T,
    place: Arc<Place>,
    evicted: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The deadline of its proof of membership; `None` after the proof, or if another component
    /// limits how long it waits.
    prove_by: Option<Pin<Box<Sleep>>>,
    stall: Option<Duration>,
    stalls_at: Option<Pin<Box<Sleep>>>,
}

impl<T> Admitted<T> {
    /// `io` with its place. If `must_prove`, it is closed unless [`crate::door::Door::prove`] is
    /// called in time.
    pub fn new(io: T, place: Arc<Place>, must_prove: bool) -> Self {
        let figures = *place.door().figures();
        let evicted = Box::pin(place.evicted().clone().cancelled_owned());
        let prove_by = must_prove.then(|| Box::pin(sleep(figures.wait)));
        Self { io, place, evicted, prove_by, stall: figures.stall, stalls_at: None }
    }

    /// Fails if the connection has to be closed.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.evicted.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed to make room"));
        }
        if let Some(prove_by) = &mut self.prove_by {
            if !self.place.waits() {
                self.prove_by = None;
            } else if prove_by.as_mut().poll(cx).is_ready() {
                self.place.door().refuse(Reason::WaitedTooLong, &"a connection that proved nothing");
                return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was proven in time"));
            }
        }
        Ok(())
    }

    /// Passes the result of a write on; fails if writes have made no progress for too long.
    fn written<V>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<V>>) -> Poll<io::Result<V>> {
        let (Poll::Pending, Some(stall)) = (&written, self.stall) else {
            self.stalls_at = None;
            return written;
        };
        let stalls_at =
            self.stalls_at.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + stall)));
        ready!(stalls_at.as_mut().poll(cx));
        self.place.door().refuse(Reason::Stalled, &"a client that doesn't read its answer");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client doesn't read")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Admitted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Admitted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Connected for Admitted<TcpStream> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

/// The peer address of a gRPC call's connection, by which its door finds it.
pub fn address_of<T>(request: &tonic::Request<T>) -> Option<SocketAddr> {
    request.remote_addr()
}
