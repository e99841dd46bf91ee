//! What a manager answers while it waits for its cluster: 503 and why, at once.
//!
//! Invariant: a client is never left waiting; nothing but the reason is told.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

/// How long a client may take for its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Clients that are answered at once; others wait for their turn.
const CLIENTS_MAX: usize = 64;
/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers clients of the Docker API and of the admin port with `reason` until it is dropped.
pub(crate) async fn refuse(docker: &UnixListener, admin: &TcpListener, reason: watch::Receiver<String>) {
    tokio::join!(
        refuse_on(async || docker.accept().await.map(|(stream, _)| stream), reason.clone()),
        refuse_on(async || admin.accept().await.map(|(stream, _)| stream), reason),
    );
}

async fn refuse_on<S, F>(accept: impl Fn() -> F, reason: watch::Receiver<String>)
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
            Ok(stream) => drop(clients.spawn(answer(stream, reason.clone()))),
            Err(error) => {
                debug!(error = mesh_runtime::error_chain(&error), "accept a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while clients.try_join_next().is_some() {}
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    reason: watch::Receiver<String>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = response(request.uri().path(), &reason.borrow());
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(REQUEST_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            debug!(error = mesh_runtime::error_chain(&error), "answer a client that came too early");
        }
        Err(_) => debug!("a client sent no request"),
    }
}

/// The process is alive and says so; everything else has to wait.
fn response(path: &str, reason: &str) -> Response<Full<Bytes>> {
    let (status, kind, body) = if path == "/healthz" {
        (StatusCode::OK, "text/plain", "ok\n".to_owned())
    } else if path == "/readyz" {
        (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{reason}\n"))
    } else {
        let body = serde_json::json!({ "message": reason });
        (StatusCode::SERVICE_UNAVAILABLE, "application/json", body.to_string())
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_health_is_well() {
        assert_eq!(response("/healthz", "waits").status(), StatusCode::OK);
        for path in ["/readyz", "/v1.41/services", "/"] {
            assert_eq!(response(path, "waits").status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
    }
}
