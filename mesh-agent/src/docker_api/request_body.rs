//! Watches a request's body on its way to an upstream: when the call fails, the watch says whether
//! the client was at fault.
//!
//! Invariant: the bytes are neither changed nor kept.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// What was wrong with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The body is incomplete, or its chunks are invalid.
    Broken,
    /// The body is longer than the limit.
    TooLarge,
}

/// Reports what was wrong with a body, after the call.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch(Arc<AtomicU8>);

const BROKEN: u8 = 1;
const TOO_LARGE: u8 = 2;

impl Watch {
    /// What was wrong; `None` if nothing was so far.
    pub(super) fn fault(&self) -> Option<Fault> {
        match self.0.load(Ordering::Relaxed) {
            BROKEN => Some(Fault::Broken),
            TOO_LARGE => Some(Fault::TooLarge),
            _ => None,
        }
    }
}

/// A body that is watched, and ends with an error after `left` bytes.
pub(super) struct Watched {
    body: Incoming,
    left: u64,
    watch: Watch,
}

impl Watched {
    pub(super) fn new(body: Incoming, most: Option<u64>, watch: Watch) -> Self {
        Self { body, left: most.unwrap_or(u64::MAX), watch }
    }

    fn fail(&self, fault: u8, error: impl Into<BodyError>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.watch.0.store(fault, Ordering::Relaxed);
        Poll::Ready(Some(Err(error.into())))
    }
}

/// Why a body can't be passed on.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Body for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match self.left.checked_sub(length) {
                    Some(left) => self.left = left,
                    None => return self.fail(TOO_LARGE, "the body is too large"),
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => self.fail(BROKEN, error),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
