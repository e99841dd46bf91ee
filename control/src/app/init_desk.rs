//! Answers the control socket while this manager has no cluster, and takes the call that gives it
//! one: a new one, or a place in one.
//!
//! Invariants: only the socket's owner, root, can call; the client is answered once the cluster
//! serves, or can't be had; the key to which a place is sealed is this process's alone.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode};
use mesh_backup::{Backup, content};
use mesh_runtime::error_chain;
use mesh_state::api_paths::{INIT_PATH, JOIN_PATH, NO_CLUSTER_HEADER, OFFER_PATH, RESTORE_PATH};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::desk::{Desk, serve_until};
use crate::founding::Founding;
use crate::handover::{BOX_BYTES_MAX, Handover, OfferKey};

/// The most bytes of the call's body.
const BODY_BYTES_MAX: usize = 2 * BOX_BYTES_MAX;
/// How long a backup waits for the call that begins a cluster with it. After that, the call makes a
/// new cluster, as always.
const BACKUP_WAITS: Duration = Duration::from_secs(30);

/// Takes the outcome: what the client gets, or why there is no cluster.
pub(super) type Outcome = oneshot::Sender<Result<Value, String>>;

/// The body of the call that gives this manager a place in a cluster.
#[derive(Debug, Deserialize)]
struct Joining {
    /// Where nodes and other managers reach it.
    advertise: SocketAddr,
    /// Where it listens for nodes.
    listen: SocketAddr,
    /// What the cluster gives it, sealed to its offered key, base64.
    sealed: String,
}

/// How this manager gets its cluster.
pub(super) struct Beginning {
    pub(super) founding: Founding,
    /// What the cluster gave it; `None` for a new cluster.
    pub(super) handover: Option<Handover>,
    /// What it is restored from; `None` for a cluster that begins empty.
    pub(super) backup: Option<Backup>,
}

/// What the answers need.
struct InitDesk {
    asks: mpsc::Sender<(Beginning, Outcome)>,
    name: String,
    offer: OfferKey,
    /// The backup that the next cluster begins with, and until when.
    backup: Mutex<Option<(Instant, Backup)>>,
}

/// Serves `listener` until a client gives the manager `name` a cluster.
pub(super) async fn wait(listener: &UnixListener, name: &str) -> (Beginning, Outcome) {
    let (asks, asked) = mpsc::channel(1);
    let desk =
        InitDesk { asks, name: name.to_owned(), offer: OfferKey::generate(), backup: Mutex::default() };
    serve_until(listener, desk, asked).await
}

impl Desk for InitDesk {
    const CONNECTION_DEADLINE: Duration = Duration::from_mins(2);

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match (&method, path.as_str()) {
            (_, "/healthz") => response(StatusCode::OK, &json!("waits for docker swarm init or join")),
            (&Method::POST, OFFER_PATH) => {
                let key = BASE64.encode(self.offer.public());
                response(StatusCode::OK, &json!({ "PublicKey": key, "Name": self.name }))
            }
            (&Method::POST, RESTORE_PATH) => match self.keep_backup(request).await {
                Ok(manifest) => response(StatusCode::ACCEPTED, &manifest),
                Err(reason) => refusal(StatusCode::BAD_REQUEST, &reason),
            },
            (&Method::POST, INIT_PATH | JOIN_PATH) => match self.beginning(&path, request).await {
                Ok(beginning) => self.begin(beginning).await,
                Err(reason) => refusal(StatusCode::BAD_REQUEST, &reason),
            },
            _ => {
                let text =
                    "this manager has no cluster yet: docker swarm init on this node's docker.sock makes one";
                let mut refused = refusal(StatusCode::SERVICE_UNAVAILABLE, text);
                refused.headers_mut().insert(NO_CLUSTER_HEADER, HeaderValue::from_static("1"));
                refused
            }
        }
    }
}

impl InitDesk {
    /// Keeps a client's backup for the call that begins a cluster. Returns its manifest.
    async fn keep_backup(&self, request: Request<Incoming>) -> Result<Value, String> {
        let is_dry = request.uri().query().unwrap_or_default().contains("dry-run=1");
        let body = Limited::new(request.into_body(), content::BYTES_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let backup = Backup::decode(&body).map_err(|error| error.to_string())?;
        if is_dry {
            return Ok(json!({ "Waits": backup.manifest() }));
        }
        let manifest = json!({ "Waits": backup.manifest() });
        let kept = Some((Instant::now() + BACKUP_WAITS, backup));
        *self.backup.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(manifest)
    }

    /// The backup that a cluster begins with now.
    fn take_backup(&self) -> Option<Backup> {
        let kept = self.backup.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.filter(|(until, _)| *until > Instant::now()).map(|(_, backup)| backup)
    }

    /// What a client gives this manager, checked.
    async fn beginning(&self, path: &str, request: Request<Incoming>) -> Result<Beginning, String> {
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        if path == INIT_PATH {
            let asked: Founding = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            let backup = self.take_backup();
            let founding = Founding { restores: backup.is_some(), ..asked };
            return Ok(Beginning { founding, handover: None, backup });
        }
        let joining: Joining = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let sealed = BASE64.decode(joining.sealed).map_err(|error| error.to_string())?;
        let handover = self.offer.open(&self.name, &sealed).map_err(|error| error_chain(&error))?;
        let founding = Founding {
            advertise: joining.advertise,
            listen: joining.listen,
            network_pool: None,
            network_prefix: None,
            joins: Some(handover.members.clone()),
            restores: false,
        };
        Ok(Beginning { founding, handover: Some(handover), backup: None })
    }

    async fn begin(&self, beginning: Beginning) -> Response<Full<Bytes>> {
        let (outcome, begun) = oneshot::channel();
        // Only one is taken; of two clients at once the second is refused.
        if self.asks.try_send((beginning, outcome)).is_err() {
            let text = "another client gives this manager a cluster";
            return refusal(StatusCode::SERVICE_UNAVAILABLE, text);
        }
        match begun.await {
            Ok(Ok(value)) => response(StatusCode::OK, &value),
            Ok(Err(reason)) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &reason),
            Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "this manager stops"),
        }
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
