//! A kernel pipe between two connections: pages move from one socket to the other without being
//! copied (splice(2)).
//!
//! Invariants: a direction's bytes are in its pipe or in its buffer, never in both; what one turn
//! put into the pipe leaves it before more is put in. A semaphore bounds the number of pipes, so
//! that they never use up the file descriptors of anything else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The pipe's size in bytes; it holds references to that many bytes' pages.
const SIZE: usize = 256 << 10;
/// The most bytes that one turn takes.
const TURN: usize = 1 << 20;

/// A pipe, and the number of bytes in it.
#[derive(Debug)]
pub(super) struct Conduit {
    inlet: OwnedFd,
    outlet: OwnedFd,
    held: usize,
    place: OwnedSemaphorePermit,
}

impl Conduit {
    /// Opens an empty pipe; `None` without a permit.
    pub(super) fn within(room: &Arc<Semaphore>) -> Option<Self> {
        let place = Arc::clone(room).try_acquire_owned().ok()?;
        let (outlet, inlet) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)
            .inspect_err(|error| tracing::debug!(%error, "copy bytes: the kernel gives no pipe"))
            .ok()?;
        if let Err(error) = fcntl_setpipe_size(&inlet, SIZE) {
            tracing::debug!(
                error = mesh_runtime::error_chain(&error),
                "can't enlarge a pipe: it moves fewer bytes at a time"
            );
        }
        Some(Self { inlet, outlet, held: 0, place })
    }

    /// Whether the pipe is empty while others wait for a permit.
    pub(super) fn is_to_be_given_up(&self) -> bool {
        self.held == 0 && self.place.semaphore().available_permits() == 0
    }

    /// Bytes in the pipe.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Splices bytes from `from` into the pipe; 0 means end of file.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            let taken = from.try_io(Interest::READABLE, || turn(from, &self.inlet, TURN));
            match taken {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    let taken = result?;
                    self.held += taken;
                    return Poll::Ready(Ok(taken));
                }
            }
        }
    }

    /// Splices bytes from the pipe to `to`; returns how many.
    pub(super) fn poll_empty(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            let passed = to.try_io(Interest::WRITABLE, || turn(&self.outlet, to, self.held));
            match passed {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    let passed = result?;
                    self.held -= passed;
                    return Poll::Ready(Ok(passed));
                }
            }
        }
    }
}

fn turn(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(splice(from, None, to, None, length, flags)?)
}
