//! Answers clients while a manager waits for its cluster: 503 with the reason, at once. On the
//! control socket, which only root opens, it takes orders meanwhile.
//!
//! Invariant: no client is left waiting; the answers contain nothing but the reason.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_state::api_paths::{FORCE_NEW_PATH, RESIGN_PATH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

use crate::orders::{ManagerOrder, Orders};

/// The deadline for a client's request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// The most clients that are served at a time; others wait.
const CLIENTS_MAX: usize = 64;
/// The pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers clients of the Docker API and of the admin port with `reason` until it is dropped.
/// Orders on the control socket go to `orders`.
pub(crate) async fn refuse(
    docker: &UnixListener,
    admin: &TcpListener,
    reason: watch::Receiver<String>,
    orders: Option<Orders>,
) {
    tokio::join!(
        refuse_on(async || docker.accept().await.map(|(stream, _)| stream), reason.clone(), orders),
        refuse_on(async || admin.accept().await.map(|(stream, _)| stream), reason, None),
    );
}

/// Closes connections of remote clients until it is dropped: what they trust is in the cluster's
/// record, so there is nothing to answer them with.
pub(crate) async fn close(remote: Option<&TcpListener>) {
    let Some(remote) = remote else { return std::future::pending().await };
    loop {
        if let Err(error) = remote.accept().await {
            debug!(error = mesh_runtime::error_chain(&error), "can't accept a remote client");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn refuse_on<S, F>(accept: impl Fn() -> F, reason: watch::Receiver<String>, orders: Option<Orders>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = std::io::Result<S>>,
{
    let mut clients = JoinSet::new();
    loop {
        if clients.len() >= CLIENTS_MAX {
            clients.join_next().await;
        }
        match accept().await {
            Ok(stream) => drop(clients.spawn(answer(stream, reason.clone(), orders.clone()))),
            Err(error) => {
                debug!(error = mesh_runtime::error_chain(&error), "can't accept a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while clients.try_join_next().is_some() {}
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    reason: watch::Receiver<String>,
    orders: Option<Orders>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let order = orders.as_ref().zip(order_of(&request));
        let answer = match order.map(|(orders, order)| orders.try_send(order)) {
            Some(Ok(())) => said(StatusCode::ACCEPTED, "application/json", "{}".to_owned()),
            Some(Err(_)) | None => response(request.uri().path(), &reason.borrow()),
        };
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(REQUEST_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            debug!(
                error = mesh_runtime::error_chain(&error),
                "can't answer a client that came before the cluster"
            );
        }
        Err(_) => debug!("a client sent no request"),
    }
}

/// `/healthz` is good, as the process is alive; every other path gets 503.
fn response(path: &str, reason: &str) -> Response<Full<Bytes>> {
    let (status, kind, body) = if path == "/healthz" {
        (StatusCode::OK, "text/plain", "ok\n".to_owned())
    } else if path == "/readyz" {
        (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{reason}\n"))
    } else {
        let body = serde_json::json!({ "message": reason });
        (StatusCode::SERVICE_UNAVAILABLE, "application/json", body.to_string())
    };
    said(status, kind, body)
}

/// The order that a request to the control socket is, if it is one.
fn order_of<B>(request: &Request<B>) -> Option<ManagerOrder> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, RESIGN_PATH) => {
            Some(ManagerOrder::Resign { force: request.uri().query() == Some("force=1") })
        }
        (&Method::POST, FORCE_NEW_PATH) => Some(ManagerOrder::ForceNewCluster),
        _ => None,
    }
}

fn said(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_healthz_is_good() {
        assert_eq!(response("/healthz", "waits").status(), StatusCode::OK);
        for path in ["/readyz", "/v1.41/services", "/"] {
            assert_eq!(response(path, "waits").status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
    }

    #[test]
    fn only_posts_are_orders() {
        let order =
            |method: &str, uri: &str| order_of(&Request::builder().method(method).uri(uri).body(()).unwrap());
        assert_eq!(order("POST", RESIGN_PATH), Some(ManagerOrder::Resign { force: false }));
        assert_eq!(order("POST", "/mesh/resign?force=1"), Some(ManagerOrder::Resign { force: true }));
        assert_eq!(order("POST", FORCE_NEW_PATH), Some(ManagerOrder::ForceNewCluster));
        assert_eq!((order("GET", RESIGN_PATH), order("POST", "/services")), (None, None));
    }
}
