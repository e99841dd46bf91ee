//! Sends the manager on this machine the id of the node on which it runs.
//!
//! A manager can't find that out by itself: any node may have its hostname. The call goes over the
//! control socket, which only root can open, and stays open: its end shows that the manager has
//! ended, and the agent calls the next one.
//!
//! Left to others: what the manager does with the id (mesh-control's `own_node`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode, Uri};
use mesh_state::ids::NodeId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::compose::CONTROL_TIMEOUT;
use super::error::{ApiError, Peer};
use super::upstream::Upstream;
use crate::view::NodeView;
use mesh_runtime::backoff::Backoff;

/// Pauses between attempts to reach the manager.
const PAUSE_SHORTEST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// Sends this node's id, once it has one, to the manager behind `control` and to each manager that
/// follows it, until `shutdown`.
pub async fn tell_manager(
    control: PathBuf,
    views: watch::Receiver<Arc<NodeView>>,
    shutdown: CancellationToken,
) {
    let manager = Upstream::new(Peer::Control, control);
    shutdown.run_until_cancelled(keep_informed(&manager, views)).await;
}

async fn keep_informed(manager: &Upstream, mut views: watch::Receiver<Arc<NodeView>>) {
    let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
    // The node has no id before it joins. A node that joins another cluster does so in another
    // process, so the id is read once.
    let Ok(node) = views.wait_for(|view| !view.node_id.is_empty()).await.map(|view| view.node_id.clone())
    else {
        return;
    };
    loop {
        match send_node_id(manager, &node).await {
            Ok(mut open) => {
                info!(%node, "the manager on this machine knows its node");
                backoff.reset();
                while let Some(Ok(_)) = open.frame().await {}
                debug!("the manager on this machine has ended");
            }
            // The agent may start long before the manager.
            Err(error) => {
                debug!(
                    error = mesh_runtime::error_chain(&error),
                    "can't send the manager on this machine its node's id; will try again"
                );
            }
        }
        let pause = backoff.pause(&mut rand::rng());
        tokio::time::sleep(pause).await;
    }
}

/// One call. Its answer ends with the manager.
async fn send_node_id(manager: &Upstream, node: &NodeId) -> Result<Incoming, ApiError> {
    let unreadable = |reason: String| ApiError::Unreadable { peer: Peer::Control, reason };
    let uri: Uri = format!("/mesh/node/{node}").parse().map_err(|error| unreadable(format!("{error}")))?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let answer = manager.call_within(CONTROL_TIMEOUT, request).await?;
    match answer.status() {
        StatusCode::OK => Ok(answer.into_body()),
        status => Err(unreadable(format!("it answered {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::Ipv4Addr;

    use hyper::Response;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    use super::*;

    /// A manager that reports the id it received, and keeps the call open for as long as the result
    /// lives.
    fn manager(listener: UnixListener, told: mpsc::Sender<String>) -> CancellationToken {
        let ends = CancellationToken::new();
        let end = ends.clone();
        tokio::spawn(async move {
            let Some(Ok((stream, _))) = ends.run_until_cancelled(listener.accept()).await else { return };
            let service = service_fn(|request: Request<Incoming>| {
                let told = told.clone();
                async move {
                    told.send(format!("{} {}", request.method(), request.uri())).await.unwrap();
                    let open = futures::stream::pending::<Result<hyper::body::Frame<Bytes>, Infallible>>();
                    Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(open)))
                }
            });
            let serving =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            ends.run_until_cancelled(serving).await;
        });
        end
    }

    #[tokio::test(start_paused = true)]
    async fn every_manager_is_told_once_the_node_has_an_id() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let (told, mut heard) = mpsc::channel(8);
        let view = watch::Sender::new(Arc::new(NodeView::new(NodeId::default(), Ipv4Addr::LOCALHOST)));
        let stop = CancellationToken::new();
        let telling = tokio::spawn(tell_manager(socket.clone(), view.subscribe(), stop.clone()));
        for round in 0..2 {
            let manager = manager(UnixListener::bind(&socket).unwrap(), told.clone());
            if round == 0 {
                tokio::time::sleep(Duration::from_mins(1)).await;
                assert!(heard.try_recv().is_err(), "a node that has not joined has no id");
                view.send_modify(|view| Arc::make_mut(view).node_id = "n1".into());
            }
            assert_eq!(heard.recv().await.unwrap(), "POST /mesh/node/n1", "round {round}");
            tokio::time::sleep(Duration::from_mins(1)).await;
            assert!(heard.try_recv().is_err(), "the manager still lives");
            manager.cancel();
            std::fs::remove_file(&socket).unwrap();
        }
        stop.cancel();
        telling.await.unwrap();
    }
}
