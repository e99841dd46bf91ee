//! Answers the control socket while this manager has no cluster, and takes the one call that gives
//! it one.
//!
//! Invariants: only the socket's owner, root, can call; the client that founds a cluster is
//! answered once the cluster serves, or can't be founded.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_state::api_paths::{INIT_PATH, NO_CLUSTER_HEADER};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::founding::Founding;

/// The most bytes of the call's body.
const BODY_BYTES_MAX: usize = 16 << 10;
/// The deadline of an answer that founds a cluster, and the rest of a connection's life.
const CONNECTION_DEADLINE: Duration = Duration::from_mins(2);
/// The pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes the outcome: what the client gets, or why there is no cluster.
pub(super) type Outcome = oneshot::Sender<Result<Value, String>>;

/// Serves `listener` until a client founds a cluster.
pub(super) async fn wait(listener: &UnixListener) -> (Founding, Outcome) {
    let (asks, mut asked) = mpsc::channel(1);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, asks.clone()))),
                Err(error) => {
                    debug!(error = mesh_runtime::error_chain(&error), "can't accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ask) = asked.recv() => return ask,
        }
    }
}

async fn serve(stream: UnixStream, asks: mpsc::Sender<(Founding, Outcome)>) {
    let service = service_fn(move |request| {
        let asks = asks.clone();
        async move { Ok::<_, Infallible>(answer(request, &asks).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = mesh_runtime::error_chain(&error), "can't answer a client"),
        Err(_) => debug!("a client of the control socket takes too long"),
    }
}

async fn answer(
    request: Request<Incoming>,
    asks: &mpsc::Sender<(Founding, Outcome)>,
) -> Response<Full<Bytes>> {
    if request.uri().path() == "/healthz" {
        return response(StatusCode::OK, &json!("waits for docker swarm init"));
    }
    if (request.method(), request.uri().path()) != (&Method::POST, INIT_PATH) {
        let text = "this manager has no cluster yet: docker swarm init on this node's docker.sock makes one";
        let mut refused = refusal(StatusCode::SERVICE_UNAVAILABLE, text);
        refused.headers_mut().insert(NO_CLUSTER_HEADER, HeaderValue::from_static("1"));
        return refused;
    }
    let founding = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => serde_json::from_slice::<Founding>(&body.to_bytes()).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let founding = match founding {
        Ok(founding) => founding,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &error),
    };
    let (outcome, founded) = oneshot::channel();
    // Only one is taken; of two clients at once the second is refused.
    if asks.try_send((founding, outcome)).is_err() {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "another client makes a cluster on this manager");
    }
    match founded.await {
        Ok(Ok(value)) => response(StatusCode::OK, &value),
        Ok(Err(reason)) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &reason),
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "this manager stops"),
    }
}

fn refusal(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    response(status, &json!({ "message": message }))
}

fn response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(value.to_string()));
    *response.status_mut() = status;
    response
}
