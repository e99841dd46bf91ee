//! Serves the control socket of a manager that waits for one call: for a cluster, or for the unlock
//! key.
//!
//! Invariants: each connection carries one call and has a deadline; a client that is slow or breaks
//! off keeps nobody else waiting.
//!
//! Left to others: what each call is answered with ([`Desk`]).

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use mesh_runtime::error_chain;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::debug;

/// The pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answers of a manager that waits.
pub(super) trait Desk: Send + Sync + 'static {
    /// The life of a connection, the wait for its answer included.
    const CONNECTION_DEADLINE: Duration;

    /// Answers one call.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// Serves `listener` until the desk, which holds the sender of `taken`, takes what it waits for.
pub(super) async fn serve_until<D: Desk, T>(
    listener: &UnixListener,
    desk: D,
    mut taken: mpsc::Receiver<T>,
) -> T {
    let desk = Arc::new(desk);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, Arc::clone(&desk)))),
                Err(error) => {
                    debug!(error = error_chain(&error), "can't accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(taken) = taken.recv() => return taken,
        }
    }
}

async fn serve<D: Desk>(stream: UnixStream, desk: Arc<D>) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(D::CONNECTION_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = error_chain(&error), "can't answer a client"),
        Err(_) => debug!("a client of the control socket takes too long"),
    }
}
