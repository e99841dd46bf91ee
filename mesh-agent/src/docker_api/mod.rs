//! The node's `docker.sock`: one Docker API in front of the local engine and the cluster.
//!
//! Purpose: a Docker client of this socket sees a Swarm. Calls about services, tasks, nodes,
//! secrets, configs and the swarm go to the manager on this node, or get Swarm's "not a manager"
//! answer; every other call passes to the local engine, hijacked streams included. A few answers
//! are composed of both ([`compose`]).
//!
//! Invariants: what passes through is not read, changed or buffered; only composed answers are, up
//! to a bound. This module keeps no state beyond a call: each asks the engine and the manager anew,
//! and a call that the engine can answer waits for no manager.
//!
//! Left to others: what the swarm calls mean (mesh-control), running tasks ([`crate::task`]), and
//! access control: the file's mode decides who may open the socket, as with the engine's own.

mod attached_body;
mod attachment_keeper;
mod attachments;
mod compose;
mod container_networks;
mod error;
mod events;
mod filters;
mod founding;
mod manager_role;
mod membership;
mod membership_calls;
mod network_owner;
mod networks;
mod overlay;
mod own_manager;
mod passthrough;
mod path;
mod promotion;
mod request_body;
mod route;
mod socket;
mod upstream;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use mesh_admission::door::Door;
use mesh_admission::http;
use mesh_admission::refusals::Reason;
use mesh_admission::register::Call;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::enrolment::Enrolment;
use crate::view::NodeView;
pub use attachment_keeper::keep_attachments;
pub use attachments::Attachments;
use compose::Composer;
use error::ApiError;
pub use manager_role::ManagerRole;
pub use own_manager::tell_manager;
use passthrough::{forward, is_foreign_upgrade};
use path::CallPath;
pub use promotion::{Promotion, Promotions};
use route::Route;
pub use socket::{bind, open};
use upstream::{Limits, Upstream};

/// Bodies of answers: streamed from an upstream, or made here.
type Body = BoxBody<Bytes, hyper::Error>;

/// The most bytes of a request's body that mesh-control accepts.
const CONTROL_BODY_BYTES_MAX: u64 = 16 << 20;
/// How long mesh-control may take to begin an answer, including the time for the request's body. It
/// doesn't apply to streams.
const CONTROL_ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// The most bytes of a refused request that are read and dropped.
const DRAINED_BYTES_MAX: usize = 16 << 20;
/// How long open connections may go on after shutdown was requested.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The upstreams of the socket.
#[derive(Clone)]
pub struct Upstreams {
    /// The local engine's socket.
    pub engine: PathBuf,
    /// The socket of the manager on this node; where nothing listens on it, there is none.
    pub control: PathBuf,
    /// The port of this node's tunnel.
    pub tunnel_port: u16,
    /// The view of the mesh, for `docker info` on a worker.
    pub view: watch::Receiver<Arc<NodeView>>,
    /// Why the node carries traffic in userspace though its settings allow kernel programs.
    pub fallback: watch::Receiver<Option<String>>,
    /// Containers on the cluster's networks; absent until this node is a member of a cluster.
    pub attachments: Arc<ArcSwapOption<Attachments>>,
    /// This node's membership, and the way to change it.
    pub enrolment: Enrolment,
    /// How far the manager on this node is.
    pub promotions: Promotions,
}

/// Serves clients of `listener` that `door` admits until `shutdown`, then gives open connections a
/// moment to finish.
pub async fn serve(
    listener: UnixListener,
    upstreams: Upstreams,
    door: Arc<Door>,
    shutdown: CancellationToken,
) {
    let shared = Arc::new(Shared {
        composer: Composer::new(upstreams),
        streams: TaskTracker::new(),
        door: Arc::clone(&door),
        shutdown: shutdown.clone(),
    });
    info!(socket = ?listener.local_addr().ok(), "serve Docker API");
    let answering = Arc::clone(&shared);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    http::serve(listener, door, route::kind_of, service, shutdown).await;
    shared.streams.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, shared.streams.wait()).await.is_err() {
        debug!(open = shared.streams.len(), "drop hijacked streams still connected");
    }
}

/// What every call needs.
struct Shared {
    composer: Composer,
    /// Hijacked streams.
    streams: TaskTracker,
    door: Arc<Door>,
    shutdown: CancellationToken,
}

/// Reads the rest of a request: a client that is answered while it still writes would see a broken
/// pipe instead of the answer.
async fn drain(body: Incoming) {
    let taken = Limited::new(body, DRAINED_BYTES_MAX).collect();
    match tokio::time::timeout(DRAIN_TIMEOUT, taken).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            debug!(error = mesh_runtime::error_chain(&*error), "can't read the rest of a refused request");
        }
        Err(_) => debug!("a refused request doesn't end"),
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = match CallPath::of(request.uri()) {
            Ok(path) => path,
            Err(error) => {
                let what = format!("{} {}", request.method(), request.uri().path());
                self.door.refuse(Reason::Ambiguous, &what);
                return error.into_response();
            }
        };
        let answered = self.route(request, &path).await;
        let state = self.composer.enrolment().state();
        answered.unwrap_or_else(|error: ApiError| {
            error.on_node(state, &self.composer.promotions().borrow()).into_response()
        })
    }

    async fn route(
        &self,
        mut request: Request<Incoming>,
        path: &CallPath,
    ) -> Result<Response<Body>, ApiError> {
        let (composer, parts) = (&self.composer, path.parts());
        if is_foreign_upgrade(&request, &parts) {
            return Err(ApiError::Ambiguous("it asks to go on in HTTP/2"));
        }
        let route = Route::of(request.method(), &parts, request.uri());
        // The engine decodes the path itself; after respelling, both decide on one spelling.
        if route != Route::Engine
            && let Some(uri) = path.respelled(request.uri())
        {
            *request.uri_mut() = uri;
        }
        match route {
            Route::Engine => self.forward(request, composer.engine(), Limits::default()).await,
            Route::Control => self.ask_control(request).await,
            Route::Membership(call) => self.change_membership(call, request).await,
            Route::Ping => composer.ping(&request).await,
            Route::Info => composer.info(&request).await,
            Route::Events => composer.events(&request).await,
            Route::NetworkList => composer.network_list(&request).await,
            Route::NetworkCreate => composer.network_create(request).await,
            Route::NetworkPrune => composer.network_prune(&request).await,
            Route::NetworkOne => composer.network_one(&request).await,
            Route::NetworkConnect => match composer.connectable(&request).await {
                Ok(true) => composer.cluster_connect(request).await,
                Ok(false) => self.forward(request, composer.engine(), Limits::default()).await,
                Err(error) => {
                    drain(request.into_body()).await;
                    Err(error)
                }
            },
            Route::NetworkDisconnect => {
                if let Some(uri) = composer.disconnect_path(request.uri())? {
                    *request.uri_mut() = uri;
                }
                self.forward(request, composer.engine(), Limits::default()).await
            }
            Route::ContainerCreate => composer.container_create(request).await,
            Route::TaskContainers => composer.task_containers(&request).await,
        }
    }

    /// Passes a call on to the manager on this node.
    async fn ask_control(&self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        match self.composer.control().and_then(Upstream::present) {
            Ok(control) => {
                let answer = (route::kind_of(&request) == Call::Short).then_some(CONTROL_ANSWER_TIMEOUT);
                let limits = Limits { answer, body_bytes: Some(CONTROL_BODY_BYTES_MAX) };
                self.forward(request, control, limits).await
            }
            Err(error) => {
                drain(request.into_body()).await;
                Err(error)
            }
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        upstream: &Upstream,
        limits: Limits,
    ) -> Result<Response<Body>, ApiError> {
        forward(request, upstream, limits, &self.streams, &self.shutdown).await
    }
}
