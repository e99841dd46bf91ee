//! Carries bytes both ways between two connections until both directions have ended.
//!
//! Purpose: one task per connection, and no buffer of its own while both peers keep up: bytes go
//! through a buffer of the thread, and only what the receiver's socket doesn't take yet is kept.
//!
//! Between nodes the bytes are framed, and a connection whose session ended properly returns to the
//! pool for the next one.
//!
//! Invariants: the end of one direction is passed on (half-close) while the other goes on; an
//! abortive end of one connection resets the other, so that nobody takes a cut-off reply for a
//! complete one; bytes are counted as they are written; the bytes kept by all connections together
//! are bounded.

mod conduit;
mod ends;
mod framing;
mod socket;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use self::conduit::Conduit;
use self::ends::{ByteSink, ByteSource};
use super::ledger::Gone;

/// Size of the thread's buffer: the most that one read takes.
const READ_MAX: usize = 256 << 10;
/// Size of a connection's first read, and of each read after one that the receiver did not keep up
/// with.
const READ_MIN: usize = 16 << 10;
/// Size of reads while connections keep more than [`KEPT_MAX`] together (backpressure).
const READ_SCARCE: usize = 4 << 10;
/// Bytes that all connections may keep for slow receivers before reads become small.
const KEPT_MAX: usize = 256 << 20;
/// Reads of one direction before other connections get their turn.
const ROUNDS: usize = 8;

/// How often within its limit an idle connection is checked; it lasts longer by one such interval
/// at most. A connection records only whether bytes came: reading the clock for each would cost
/// more.
const WATCHES: u32 = 8;

/// Bytes kept by all connections.
static KEPT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_MAX]);
}

/// Why a connection did not end by itself.
#[derive(Debug, Error)]
pub(super) enum PipeError {
    /// One of the two sockets failed.
    #[error("a side failed")]
    Broken(#[from] io::Error),
    /// No byte was carried for this long.
    #[error("idle for {0:?}")]
    Idle(Duration),
    /// The backend left the mesh, or the agent stops.
    #[error("its backend is gone, or the agent stops")]
    Gone,
}

/// Limits and counters of one connection.
pub(super) struct PipeContext<'a> {
    /// An idle connection ends after this.
    pub(super) idle_limit: Duration,
    /// The signal that ends the connection.
    pub(super) gone: &'a Gone,
    /// Counters of bytes from the client.
    pub(super) request: &'a [&'a AtomicU64],
    /// Counters of bytes to the client.
    pub(super) reply: &'a [&'a AtomicU64],
    /// Permits of kernel pipes for directions that carry much; `None` means that bytes are copied.
    pub(super) pipes: Option<&'a Arc<Semaphore>>,
}

/// One of the two connections.
pub(super) enum Leg {
    /// A client's or a task's connection: it ends with the session.
    Plain(TcpStream),
    /// A connection between nodes: its bytes are framed, and it carries one session after another.
    Framed(TcpStream),
}

/// Carries bytes between `client` and `backend` until both directions have ended. After an error
/// both connections are reset. Returns the connection between nodes if it can carry another
/// session.
///
/// # Errors
/// Why the connections were reset.
pub(super) async fn carry(
    client: Leg,
    backend: Leg,
    context: &PipeContext<'_>,
) -> Result<Option<TcpStream>, PipeError> {
    let (mut client, client_framed) = client.open();
    let (mut backend, backend_framed) = backend.open();
    let (mut client_again, mut backend_again) = (false, false);
    let result = {
        let (client_read, client_write) = client.split();
        let (backend_read, backend_write) = backend.split();
        let source = ByteSource::new(client_read, client_framed);
        let mut request = PipeDirection::new(
            source,
            ByteSink::new(backend_write, backend_framed),
            context.request,
            context.pipes,
        );
        let source = ByteSource::new(backend_read, backend_framed);
        let mut reply = PipeDirection::new(
            source,
            ByteSink::new(client_write, client_framed),
            context.reply,
            context.pipes,
        );
        let watch = context.idle_limit / WATCHES;
        let (mut is_watched, mut quiet) = (false, 0);
        let mut gone = pin!(context.gone.signalled());
        let mut idle = pin!(sleep(watch));
        poll_fn(|cx| {
            if let Poll::Ready(ended) = poll_both(&mut request, &mut reply, cx) {
                client_again = request.from.has_ended_framed() && reply.to.has_ended_framed();
                backend_again = reply.from.has_ended_framed() && request.to.has_ended_framed();
                return Poll::Ready(ended.map_err(PipeError::from));
            }
            if context.gone.is_signalled() {
                return Poll::Ready(Err(PipeError::Gone));
            }
            if request.take_moved() | reply.take_moved() {
                quiet = 0;
                // Both sockets already wake this task, which is the same for the connection's whole
                // life.
                if is_watched && !idle.is_elapsed() {
                    return Poll::Pending;
                }
            }
            if gone.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(PipeError::Gone));
            }
            while idle.as_mut().poll(cx).is_ready() {
                quiet += 1;
                if quiet > WATCHES {
                    return Poll::Ready(Err(PipeError::Idle(context.idle_limit)));
                }
                idle.as_mut().reset(Instant::now() + watch);
            }
            is_watched = true;
            Poll::Pending
        })
        .await
    };
    if result.is_err() {
        reset(&client);
        reset(&backend);
    }
    let again = if client_again { Some(client) } else { Some(backend).filter(|_| backend_again) };
    result.map(|()| again)
}

impl Leg {
    fn open(self) -> (TcpStream, bool) {
        match self {
            Self::Plain(stream) => (stream, false),
            Self::Framed(stream) => (stream, true),
        }
    }
}

/// Makes closing the connection send a RST instead of a FIN.
pub(super) fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(
            error = mesh_runtime::error_chain(&error),
            "a connection is closed by FIN instead of RST"
        );
    }
}

fn poll_both(
    request: &mut PipeDirection<'_>,
    reply: &mut PipeDirection<'_>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    BUFFER.with_borrow_mut(|buffer| {
        // The last end needs no half-close: both connections are closed next.
        let asked = request.poll(cx, buffer, reply.is_over)?;
        let answered = reply.poll(cx, buffer, request.is_over)?;
        if asked.is_ready() && answered.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
}

/// One direction of a connection.
struct PipeDirection<'a> {
    from: ByteSource<'a>,
    to: ByteSink<'a>,
    counters: &'a [&'a AtomicU64],
    kept: Backlog,
    /// The most that the next read takes.
    read_size: usize,
    /// The kernel pipe of a direction that carries much.
    conduit: Option<Conduit>,
    pipes: Option<&'a Arc<Semaphore>>,
    has_moved: bool,
    is_read: bool,
    is_over: bool,
}

impl<'a> PipeDirection<'a> {
    fn new(
        from: ByteSource<'a>,
        to: ByteSink<'a>,
        counters: &'a [&'a AtomicU64],
        pipes: Option<&'a Arc<Semaphore>>,
    ) -> Self {
        Self {
            from,
            to,
            counters,
            kept: Backlog::default(),
            read_size: READ_MIN,
            conduit: None,
            pipes,
            has_moved: false,
            is_read: false,
            is_over: false,
        }
    }

    fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    /// Moves what can be moved now. Ready once the end was passed on, or when only that is left to
    /// do.
    fn poll(&mut self, cx: &mut Context<'_>, buffer: &mut [u8], is_last: bool) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS {
            if self.is_over {
                return Poll::Ready(Ok(()));
            }
            while !self.kept.is_empty() {
                let written = ready!(self.to.poll_write(cx, self.kept.bytes()))?;
                self.kept.drop_front(written);
                self.count(written);
            }
            if self.is_read && is_last && !self.to.must_write_end() {
                self.is_over = true;
                return Poll::Ready(Ok(()));
            }
            if self.is_read {
                let ended = ready!(self.to.poll_end(cx));
                self.is_over = true;
                return Poll::Ready(ended);
            }
            if self.conduit.is_some() {
                ready!(self.splice(cx))?;
                continue;
            }
            let size = if KEPT.load(Ordering::Relaxed) > KEPT_MAX { READ_SCARCE } else { self.read_size };
            let length = ready!(self.from.poll_read(cx, &mut buffer[..size]))?;
            self.pass(cx, &buffer[..length])?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what was read, and keeps what the socket doesn't take.
    fn pass(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        self.has_moved = true;
        if bytes.is_empty() {
            self.is_read = true;
            return Ok(());
        }
        let written = match self.to.poll_write(cx, bytes) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.count(written);
        if written < bytes.len() {
            self.kept.keep(&bytes[written..]);
            self.read_size = READ_MIN;
        } else if bytes.len() == READ_MAX && self.from.plain().is_some() && self.to.plain().is_some() {
            // Without a permit for a pipe, bytes are copied as before.
            self.conduit = self.pipes.and_then(Conduit::within);
        } else if bytes.len() == self.read_size {
            self.read_size = (2 * self.read_size).min(READ_MAX);
        }
        Ok(())
    }

    /// Moves pages through the pipe until it is empty again.
    fn splice(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (Some(conduit), Some(from), Some(to)) = (&mut self.conduit, self.from.plain(), self.to.plain())
        else {
            return Poll::Ready(Ok(()));
        };
        if conduit.held() == 0 {
            let Poll::Ready(taken) = conduit.poll_fill(cx, from) else {
                if conduit.is_to_be_given_up() {
                    self.conduit = None;
                }
                return Poll::Pending;
            };
            self.is_read = taken? == 0;
            self.has_moved = true;
        }
        while conduit.held() > 0 {
            let passed = ready!(conduit.poll_empty(cx, to))?;
            self.has_moved = true;
            count(self.counters, passed);
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, written: usize) {
        self.has_moved = true;
        count(self.counters, written);
    }
}

fn count(counters: &[&AtomicU64], written: usize) {
    for counter in counters {
        counter.fetch_add(written as u64, Ordering::Relaxed);
    }
}

/// Bytes that the receiver's socket hasn't taken yet.
#[derive(Default)]
struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn keep(&mut self, bytes: &[u8]) {
        KEPT.fetch_add(bytes.len(), Ordering::Relaxed);
        self.bytes = bytes.to_vec();
    }

    fn drop_front(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.bytes.len() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        KEPT.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        self.bytes = Vec::new();
        self.sent = 0;
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests;
