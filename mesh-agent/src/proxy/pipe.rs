//! Carries bytes both ways between two connections until both ways have ended.
//!
//! Invariants: an end of one way is passed on (half-close) while the other goes on; an abortive end of one connection aborts the
//! other, so that nobody takes a cut-off reply for a whole one; bytes are counted as they are written.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Of each way of a connection: sixteen thousand connections take half a gibibyte at most.
const BUFFER_BYTES: usize = 16 << 10;

/// Why a connection did not end by itself.
#[derive(Debug, Error)]
pub(super) enum PipeError {
    /// One of the two connections failed.
    #[error("a side failed")]
    Broken(#[from] io::Error),
    /// No byte for too long.
    #[error("idle for {0:?}")]
    Idle(Duration),
    /// Its backend left the mesh.
    #[error("its backend is gone")]
    BackendGone,
    /// The agent stops.
    #[error("the agent stops")]
    Shutdown,
}

/// What bounds a connection and what counts it.
pub(super) struct Terms<'a> {
    /// No byte either way for this long ends it.
    pub(super) idle_limit: Duration,
    /// Cancelled when the backend is gone.
    pub(super) gone: &'a CancellationToken,
    /// Cancelled when the agent may wait no longer.
    pub(super) cut: &'a CancellationToken,
    /// Counters of bytes from the client.
    pub(super) request: &'a [&'a AtomicU64],
    /// Counters of bytes to the client.
    pub(super) reply: &'a [&'a AtomicU64],
}

/// Carries bytes between `client` and `backend` until both have ended. After an error both are reset.
///
/// # Errors
/// Why they were reset.
pub(super) async fn carry(
    mut client: TcpStream,
    mut backend: TcpStream,
    terms: &Terms<'_>,
) -> Result<(), PipeError> {
    let result = {
        let activity = Activity::new();
        let (client_read, client_write) = client.split();
        let (backend_read, backend_write) = backend.split();
        let both = async {
            tokio::try_join!(
                one_way(client_read, backend_write, terms.request, &activity),
                one_way(backend_read, client_write, terms.reply, &activity),
            )
        };
        tokio::select! {
            ended = both => ended.map(|_| ()).map_err(PipeError::from),
            () = activity.idle_for(terms.idle_limit) => Err(PipeError::Idle(terms.idle_limit)),
            () = terms.gone.cancelled() => Err(PipeError::BackendGone),
            () = terms.cut.cancelled() => Err(PipeError::Shutdown),
        }
    };
    if result.is_err() {
        reset(&client);
        reset(&backend);
    }
    result
}

/// Makes the close of a connection, when it is dropped, a RST instead of a FIN.
pub(super) fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "a connection is closed by FIN instead of RST");
    }
}

async fn one_way(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    counters: &[&AtomicU64],
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        activity.note();
        if length == 0 {
            return match to.shutdown().await {
                // The other side has closed both ways already.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                result => result,
            };
        }
        to.write_all(&buffer[..length]).await?;
        activity.note();
        for counter in counters {
            counter.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

/// When a byte last moved.
struct Activity {
    last: Mutex<Instant>,
}

impl Activity {
    fn new() -> Self {
        Self { last: Mutex::new(Instant::now()) }
    }

    fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn idle_for(&self, limit: Duration) {
        loop {
            let deadline = *self.last.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    const IDLE_LIMIT: Duration = Duration::from_mins(5);

    struct Carried {
        client: TcpStream,
        backend: TcpStream,
        gone: CancellationToken,
        end: JoinHandle<Result<(), PipeError>>,
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (dialled.expect("it connects"), accepted.expect("it is accepted").0)
    }

    /// A client and a backend, and what carries between them.
    async fn start() -> Carried {
        let (client, client_side) = pair().await;
        let (backend, backend_side) = pair().await;
        let gone = CancellationToken::new();
        let told = gone.clone();
        let end = tokio::spawn(async move {
            let cut = CancellationToken::new();
            let terms = Terms { idle_limit: IDLE_LIMIT, gone: &told, cut: &cut, request: &[], reply: &[] };
            carry(client_side, backend_side, &terms).await
        });
        Carried { client, backend, gone, end }
    }

    async fn assert_reset(stream: &mut TcpStream, whose: &str) {
        let error = stream.read_u8().await.expect_err("no byte comes");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{whose} connection");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_byte_ends_after_the_limit() {
        let Carried { mut client, mut backend, end, .. } = start().await;
        let began = Instant::now();
        let error = end.await.expect("no panic").expect_err("it was idle");
        assert!(matches!(error, PipeError::Idle(_)), "saw {error:?}");
        assert!(began.elapsed() >= IDLE_LIMIT, "ended after {:?}", began.elapsed());
        assert_reset(&mut client, "the client's").await;
        assert_reset(&mut backend, "the backend's").await;
    }

    #[tokio::test]
    async fn both_sides_hear_that_the_backend_is_gone() {
        let Carried { mut client, mut backend, gone, end } = start().await;
        gone.cancel();
        assert!(matches!(end.await.expect("no panic"), Err(PipeError::BackendGone)));
        assert_reset(&mut client, "the client's").await;
        assert_reset(&mut backend, "the backend's").await;
    }

    #[tokio::test]
    async fn a_cut_off_reply_is_no_whole_one() {
        let Carried { mut client, mut backend, end, .. } = start().await;
        backend.write_all(b"half").await.expect("the backend writes");
        let mut half = [0; 4];
        client.read_exact(&mut half).await.expect("what was written arrives");
        reset(&backend);
        drop(backend);
        assert!(matches!(end.await.expect("no panic"), Err(PipeError::Broken(_))));
        assert_reset(&mut client, "the client's").await;
    }
}
