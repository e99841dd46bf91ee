//! The node's `docker.sock`: one Docker API made of the local engine and the cluster.
//!
//! Purpose: a Docker client that points here sees a Swarm. Calls about services, tasks, nodes, secrets, configs and the swarm go to
//! the manager on this node, or get Swarm's "not a manager" answer; every other call passes to the local engine, hijacked streams
//! included. A few answers are made of both ([`compose`]).
//!
//! Invariants: what passes through is not read, changed or buffered; only composed answers are, up to a bound. Nothing here keeps
//! state: each call asks the engine and the manager anew.
//!
//! Left to others: what the swarm calls mean (mesh-control), running tasks (`task`), and checking who may open the socket: the file's
//! mode does it, as with the engine's own.

mod compose;
mod error;
mod events;
mod filters;
mod passthrough;
mod route;
mod upstream;

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::view::NodeView;
use compose::Composer;
use error::ApiError;
use passthrough::forward;
use route::{Membership, Route};
use upstream::Upstream;

/// Bodies of answers: streamed from an upstream, or made here.
type Body = BoxBody<Bytes, hyper::Error>;

/// Clients served at one time; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// Bytes of a request's head (registry credentials travel there).
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// How long an idle connection or an unfinished head is kept.
const HEAD_TIMEOUT: Duration = Duration::from_mins(2);
/// Bytes of a request that is refused unread.
const DRAINED_BYTES_MAX: usize = 16 << 20;
/// How long open connections may go on after shutdown was asked for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What the socket stands on.
#[derive(Debug, Clone)]
pub struct Upstreams {
    /// The local engine's socket.
    pub engine: PathBuf,
    /// The socket of the manager on this node; it need not exist.
    pub control: Option<PathBuf>,
    /// Who this node is, for `docker info` on a worker.
    pub view: watch::Receiver<Arc<NodeView>>,
}

/// Listens on `path` with mode 0660, in place of a socket that a dead agent left.
///
/// # Errors
/// When something else than a socket is there, a living process listens on it, or the directory can't be written.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let text =
                format!("{} exists and is no socket: remove it or choose another --socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            let text =
                format!("{} is in use: another agent runs, or choose another --socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
        }
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves clients of `listener` until `shutdown`, then gives open connections a moment to finish.
pub async fn serve(listener: UnixListener, upstreams: Upstreams, shutdown: CancellationToken) {
    let composer = Arc::new(Composer::new(upstreams));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    info!(socket = ?listener.local_addr().ok(), "serve Docker API");
    loop {
        let place = tokio::select! {
            () = shutdown.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "accept Docker client");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection =
            serve_connection(stream, Arc::clone(&composer), connections.clone(), shutdown.clone());
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    connections.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        debug!(open = connections.len(), "drop Docker clients still connected");
    }
}

async fn serve_connection(
    stream: UnixStream,
    composer: Arc<Composer>,
    streams: TaskTracker,
    shutdown: CancellationToken,
) {
    let stop = shutdown.clone();
    let service = service_fn(move |request| {
        let (composer, streams, shutdown) = (Arc::clone(&composer), streams.clone(), shutdown.clone());
        async move { Ok::<_, hyper::Error>(answer(request, &composer, &streams, &shutdown).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "serve Docker client");
    }
}

/// Takes the rest of a request in: a client that is answered while it still writes sees a broken pipe instead of the answer.
async fn drain(body: Incoming) {
    let taken = Limited::new(body, DRAINED_BYTES_MAX).collect();
    match tokio::time::timeout(DRAIN_TIMEOUT, taken).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => debug!(%error, "take a refused request in"),
        Err(_) => debug!("a refused request doesn't end"),
    }
}

async fn answer(
    request: Request<Incoming>,
    composer: &Composer,
    streams: &TaskTracker,
    shutdown: &CancellationToken,
) -> Response<Body> {
    let route = Route::of(request.method(), request.uri());
    let membership = Membership::of(request.method(), request.uri());
    let answered = match route {
        Route::Engine => forward(request, composer.engine(), streams, shutdown).await,
        Route::Control => match composer.control().and_then(Upstream::present) {
            Ok(control) => forward(request, control, streams, shutdown).await,
            Err(error) => {
                drain(request.into_body()).await;
                Err(error)
            }
        },
        Route::Ping => composer.ping(&request).await,
        Route::Info => composer.info(&request).await,
        Route::Events => composer.events(&request).await,
        Route::NetworkList => composer.network_list(&request).await,
        Route::NetworkCreate => composer.network_create(request).await,
        Route::NetworkPrune => composer.network_prune(&request).await,
        Route::NetworkOne => composer.network_one(&request).await,
        Route::TaskContainers => composer.task_containers(&request).await,
    };
    answered.unwrap_or_else(|error: ApiError| error.about(membership).into_response())
}
