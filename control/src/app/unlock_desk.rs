//! Answers the control socket while this manager is locked, and takes the call that unlocks it.
//!
//! Invariants: only the socket's owner, root, can call; everything but `_ping`, `info`, `unlock`
//! and a forced leave is refused in Swarm's words; the client with the right key is answered once
//! the manager serves.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use mesh_state::api_paths::{LOCKED, RESIGN_PATH};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;
use zeroize::Zeroizing;

use super::desk::{Desk, serve_until};
use crate::api::{NO_OWN_ETCD, Params, unversioned};
use crate::seal::key_file::WrappedKey;
use crate::seal::unlock_key::UnlockKey;

/// Swarm's refusal of a call to a locked manager.
const REFUSAL: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";
/// Swarm's refusal to leave while it is locked.
const LEAVE_REFUSAL: &str =
    "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.";
/// Swarm's refusal of a key.
const WRONG_KEY: &str = "swarm could not be unlocked: invalid key provided";
/// The most bytes of the call's body.
const BODY_BYTES_MAX: usize = 4 << 10;
/// How long the client with the right key waits for the manager to serve, as in Swarm.
const SERVING_LIMIT: Duration = Duration::from_secs(20);

/// What ends the wait.
pub(super) enum Taken {
    /// The right key came.
    Key {
        /// The unlock key that opened the key file.
        key: UnlockKey,
        /// Whom to tell that the manager serves.
        client: oneshot::Sender<()>,
    },
    /// This manager is to leave its cluster by force.
    Leave,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UnlockBody {
    #[serde(default)]
    unlock_key: String,
}

/// What a locked manager answers with.
struct UnlockDesk {
    wrapped: Arc<WrappedKey>,
    /// The id of this manager's node; empty if it isn't known.
    node: String,
    /// Whether this manager can leave; one with an etcd of its operator's can't.
    may_leave: bool,
    takes: mpsc::Sender<Taken>,
}

/// Serves `listener` until a client gives the key that opens `wrapped`, or makes this manager leave
/// if it `may_leave`.
pub(super) async fn wait(
    listener: &UnixListener,
    wrapped: Arc<WrappedKey>,
    node: String,
    may_leave: bool,
) -> Taken {
    let (takes, outcome) = mpsc::channel(1);
    let desk = UnlockDesk { wrapped, node, may_leave, takes };
    serve_until(listener, desk, outcome).await
}

impl Desk for UnlockDesk {
    const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let force = Params::of(request.uri()).flag("force");
        match (request.method(), unversioned(request.uri().path())) {
            (_, "/healthz") => response(StatusCode::OK, &json!("locked: waits for docker swarm unlock")),
            (&Method::GET | &Method::HEAD, "/_ping") => response(StatusCode::OK, &json!("OK")),
            (&Method::GET, "/info") => response(StatusCode::OK, &self.info()),
            (&Method::POST, "/swarm/unlock") => self.unlock(request).await,
            (&Method::POST, "/swarm/leave" | RESIGN_PATH) if force => self.leave(),
            (&Method::POST, "/swarm/leave" | RESIGN_PATH) => {
                refusal(StatusCode::SERVICE_UNAVAILABLE, LEAVE_REFUSAL)
            }
            _ => refusal(StatusCode::SERVICE_UNAVAILABLE, REFUSAL),
        }
    }
}

impl UnlockDesk {
    fn info(&self) -> Value {
        let swarm = json!({
            "NodeID": self.node, "NodeAddr": "", "LocalNodeState": LOCKED, "ControlAvailable": false,
            "Error": REFUSAL, "RemoteManagers": null,
        });
        json!({ "Swarm": swarm })
    }

    /// Takes the order to leave. The manager waits for a cluster soon after.
    fn leave(&self) -> Response<Full<Bytes>> {
        if !self.may_leave {
            return refusal(StatusCode::NOT_IMPLEMENTED, NO_OWN_ETCD);
        }
        match self.takes.try_send(Taken::Leave) {
            Ok(()) => response(StatusCode::ACCEPTED, &json!({})),
            Err(_) => refusal(StatusCode::CONFLICT, "swarm is not locked"),
        }
    }

    /// Takes the key, and answers once the manager serves, or after Swarm's limit.
    async fn unlock(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
            Ok(body) => serde_json::from_slice::<UnlockBody>(&body.to_bytes()),
            Err(error) => return refusal(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        // The parser's error could repeat a part of the key.
        let Ok(body) = body else {
            return refusal(StatusCode::BAD_REQUEST, "the body is no JSON object with an UnlockKey");
        };
        let key = match Zeroizing::new(body.unlock_key).parse::<UnlockKey>() {
            Ok(key) => key,
            Err(error) => return refusal(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        if self.wrapped.open(&key).is_none() {
            warn!("a client gave a wrong unlock key");
            return refusal(StatusCode::UNAUTHORIZED, WRONG_KEY);
        }
        let (client, serving) = oneshot::channel();
        if self.takes.try_send(Taken::Key { key, client }).is_err() {
            return refusal(StatusCode::CONFLICT, "swarm is not locked");
        }
        match tokio::time::timeout(SERVING_LIMIT, serving).await {
            Ok(Err(_)) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "swarm component could not be started"),
            // As in Swarm, a manager that waits for its cluster is unlocked.
            Ok(Ok(())) | Err(_) => response(StatusCode::OK, &Value::Null),
        }
    }
}

fn refusal(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    response(status, &json!({ "message": message }))
}

/// An answer, empty for `null`. It says that this node is locked.
fn response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let text = if value.is_null() { String::new() } else { value.to_string() };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HeaderName::from_static("swarm"), HeaderValue::from_static(LOCKED));
    response
}
