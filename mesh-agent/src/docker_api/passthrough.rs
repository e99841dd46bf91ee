//! Calls that pass through: bodies stream both ways, and a hijacked connection is spliced to the
//! upstream's byte for byte.
//!
//! Invariants: an upgrade is joined only after the upstream agreed to it (101), and each direction
//! ends by itself: a client that closes its input still gets the rest of the output; a joined
//! stream counts as a call in service until both ends have closed.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::UPGRADE;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_admission::http::Held;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Body;
use super::error::{ApiError, full};
use super::request_body::{Fault, Watch, Watched};
use super::upstream::{Limits, Upstream};

/// Sends `request` to `upstream` and its answer back, both unchanged. Upgraded streams live in
/// `streams` until both ends closed or `shutdown`.
pub(super) async fn forward(
    mut request: Request<Incoming>,
    upstream: &Upstream,
    limits: Limits,
    streams: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Response<Body>, ApiError> {
    let held = request.extensions_mut().remove::<Held>();
    let client = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let watch = Watch::default();
    let request = request.map(|body| Watched::new(body, limits.body_bytes, watch.clone()));
    let answered = match limits.answer {
        Some(limit) => upstream.call_within(limit, request).await,
        None => upstream.call(request).await,
    };
    let mut response = answered.map_err(|error| match (watch.fault(), limits.body_bytes) {
        (Some(Fault::TooLarge), Some(most)) => ApiError::TooLarge { most },
        (Some(Fault::Broken), _) => {
            ApiError::BadRequest("the request's body broke off, or its chunks can't be read".to_owned())
        }
        _ => error,
    })?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(BodyExt::boxed));
    }
    let server = hyper::upgrade::on(&mut response);
    if let Some(client) = client {
        let shutdown = shutdown.clone();
        streams.spawn(async move {
            tokio::select! {
                () = join(client, server) => {}
                () = shutdown.cancelled() => {}
            }
            drop(held);
        });
    }
    Ok(response.map(|_| full("")))
}

/// Whether a call asks to upgrade to HTTP/2 where no client does: calls inside that connection
/// would bypass routing.
pub(super) fn is_foreign_upgrade<B>(request: &Request<B>, parts: &[&str]) -> bool {
    let mut upgrades = request.headers().get_all(UPGRADE).iter();
    let asks_for_http2 =
        upgrades.any(|value| value.as_bytes().to_ascii_lowercase().windows(3).any(|w| w == b"h2c"));
    asks_for_http2 && !(request.method() == Method::POST && matches!(parts, ["session" | "grpc"]))
}

/// Copies both ways until both ends have closed.
async fn join(client: OnUpgrade, server: OnUpgrade) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => {
            debug!(error = mesh_runtime::error_chain(&error), "can't upgrade a hijacked stream");
            return;
        }
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    match tokio::io::copy_bidirectional(&mut client, &mut server).await {
        Ok((sent, received)) => debug!(sent, received, "hijacked stream ended"),
        Err(error) => debug!(error = mesh_runtime::error_chain(&error), "hijacked stream broke"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http2_is_for_builds_only() {
        let asks = |method: Method, upgrade: &str, parts: &[&str]| {
            let request = Request::builder().method(method).header(UPGRADE, upgrade).body(()).unwrap();
            is_foreign_upgrade(&request, parts)
        };
        assert!(asks(Method::GET, "h2c", &["info"]));
        assert!(asks(Method::POST, "tcp, H2C", &["containers", "x", "attach"]));
        assert!(!asks(Method::POST, "h2c", &["session"]) && !asks(Method::POST, "h2c", &["grpc"]));
        assert!(!asks(Method::POST, "tcp", &["containers", "x", "attach"]));
    }
}
