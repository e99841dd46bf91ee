//! Calls that pass through: bodies stream both ways, and a hijacked connection is joined to the upstream's byte for byte.
//!
//! Invariant: an upgrade is joined only after the upstream agreed to it (101), and each direction ends by itself: a client that closes
//! its input still gets the rest of the output.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::UPGRADE;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Body;
use super::error::{ApiError, full};
use super::upstream::Upstream;

/// Sends `request` to `upstream` and its answer back, both untouched. Upgraded streams live in `streams` until both ends closed or
/// `shutdown`.
pub(super) async fn forward(
    mut request: Request<Incoming>,
    upstream: &Upstream,
    streams: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Response<Body>, ApiError> {
    let client = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let mut response = upstream.call(request).await?;
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
        });
    }
    Ok(response.map(|_| full("")))
}

/// Copies both ways until both ends have closed.
async fn join(client: OnUpgrade, server: OnUpgrade) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => {
            debug!(%error, "join hijacked stream");
            return;
        }
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    match tokio::io::copy_bidirectional(&mut client, &mut server).await {
        Ok((sent, received)) => debug!(sent, received, "hijacked stream ended"),
        Err(error) => debug!(%error, "hijacked stream broke"),
    }
}
