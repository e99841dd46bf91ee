//! Serves HTTP/1 to clients that may be slow, many or malformed.
//!
//! Invariants: a client beyond a cap gets an answer at once (503 with Docker's `{"message": …}`); a
//! connection that waits too long for a request is closed; a call counts as in service until its
//! answer was sent or its hijacked stream has ended.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::accept::{ConnectionSource, next};
use crate::door::{Door, InService, Place};
use crate::figures::{TURNED_AWAY_AT_ONCE, TURNED_AWAY_WITHIN};
use crate::refusals::Reason;
use crate::register::Call;
use crate::stream::Admitted;

/// The most bytes of a request's head (it carries registry credentials).
const HEAD_BYTES: usize = 256 * 1024;
/// How long open connections may go on after shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// The most bytes of a request that are read before its client is turned away.
const TURNED_AWAY_BYTES: usize = 16 * 1024;

/// Keeps a call in service for as long as a clone of it lives. It is in each request's extensions:
/// an answer that goes on beyond its HTTP exchange keeps a clone.
#[derive(Debug, Clone)]
pub struct Held(#[expect(dead_code, reason = "it is held for its drop")] Arc<InService>);

/// Returns the kind of a call.
pub type Classify = fn(&Request<Incoming>) -> Call;

/// For servers whose calls are all short.
pub fn all_short(_: &Request<Incoming>) -> Call {
    Call::Short
}

/// Serves clients of `source` with `service` until `shutdown`, then gives open connections a moment
/// to finish.
pub async fn serve<L, S, B>(
    source: L,
    door: Arc<Door>,
    classify: Classify,
    service: S,
    shutdown: CancellationToken,
) where
    L: ConnectionSource,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connections = TaskTracker::new();
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE));
    loop {
        let taken = shutdown.run_until_cancelled(next(&source, &door)).await;
        let Some((stream, peer)) = taken else { break };
        match door.admit(peer) {
            Ok(place) => {
                let place = Arc::new(place);
                let stream = Admitted::new(stream, Arc::clone(&place), false);
                connections.spawn(serve_one(stream, place, classify, service.clone(), shutdown.clone()));
            }
            Err(reason) => {
                if let Ok(permit) = Arc::clone(&turned_away).try_acquire_owned() {
                    connections.spawn(async move {
                        turn_away(stream, reason).await;
                        drop(permit);
                    });
                }
            }
        }
    }
    connections.close();
    if tokio::time::timeout(DRAIN_LIMIT, connections.wait()).await.is_err() {
        debug!(open = connections.len(), "closing connections that are still open");
    }
}

/// Serves one connection until its client closes it, or `shutdown` and the answers under way have
/// ended. `stream` goes through the [`Admitted`] of `place`, with TLS over it if there is any.
pub async fn serve_one<T, S, B>(
    stream: T,
    place: Arc<Place>,
    classify: Classify,
    service: S,
    shutdown: CancellationToken,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let wait = place.door().figures().wait;
    let calls = Arc::clone(&place);
    let guarded = service_fn(move |mut request: Request<Incoming>| {
        let answer = match calls.begin(classify(&request)) {
            Ok(in_service) => {
                let held = Held(Arc::new(in_service));
                request.extensions_mut().insert(held.clone());
                Ok((service.call(request), held))
            }
            Err(reason) => Err(reason),
        };
        async move {
            Ok::<_, Infallible>(match answer {
                Ok((answer, held)) => answer.await?.map(|body| Either::Left(Holding { body, _held: held })),
                Err(reason) => refusal(reason).map(Either::Right),
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(wait)
        .max_buf_size(HEAD_BYTES)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), guarded)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        if error.is_timeout() && !place.has_served() {
            place.door().count(Reason::WaitedTooLong);
        }
        debug!(%error, "serve a client");
    }
}

/// The answer to a refused call.
pub fn refusal(reason: Reason) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(message(reason))));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // The request may have a body, which stays unread.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn message(reason: Reason) -> String {
    format!("{}\n", serde_json::json!({ "message": reason.advice() }))
}

/// Answers a client that there is no room for, once it has sent its request: a client that is
/// answered earlier may see only a reset.
async fn turn_away<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, reason: Reason) {
    let told = async {
        let mut head = Vec::new();
        while head.len() < TURNED_AWAY_BYTES && !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let body = message(reason);
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    match tokio::time::timeout(TURNED_AWAY_WITHIN, told).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "can't answer a client that there is no room for"),
        Err(_) => debug!("a client that there is no room for sent no request"),
    }
}

/// A body that keeps its call in service.
struct Holding<B> {
    body: B,
    _held: Held,
}

impl<B: Body + Unpin> Body for Holding<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
