//! `POST /swarm/init`: the manager on this node makes a cluster, this node joins it, and the client
//! gets the node's id once the cluster shows the node as a manager. With `--force-new-cluster` the
//! manager becomes the only one of the cluster that it has.
//!
//! Invariant: what the client set of the swarm's spec is written before it is answered.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode, Uri};
use mesh_state::api_paths::{FORCE_NEW_PATH, INIT_PATH};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::compose::ANSWER_BYTES_MAX;
use super::error::{ApiError, Peer, json_response};
use super::upstream::Upstream;
use super::{Body, Shared};
use crate::enrolment::init::InitOrder;

/// How long the manager may take to make a cluster.
const FOUNDING_LIMIT: Duration = Duration::from_secs(45);
/// How long the cluster may take to show this node as a manager.
const SHOWN_LIMIT: Duration = Duration::from_secs(10);
/// How long a manager may take to end what it serves.
const GONE_LIMIT: Duration = Duration::from_secs(5);
/// The deadline of a short call.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// The pause between two looks at the node.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

impl Shared {
    /// Makes a cluster and joins it.
    pub(super) async fn found(&self, order: &InitOrder) -> Result<Response<Body>, ApiError> {
        let control = self.composer.any_control();
        let founding = serde_json::to_value(&order.founding).map_err(unreadable)?;
        let made = call(control, FOUNDING_LIMIT, Method::POST, INIT_PATH, Some(&founding)).await;
        // Without a cluster a waiting manager answers this call; nobody answers without one.
        let made = made.map_err(|error| match error {
            ApiError::NotAManager => ApiError::NoInit,
            other => other,
        })?;
        let token = made["ManagerToken"].as_str().unwrap_or_default();
        self.composer.enrolment().join(order.joining(token)?).await?;
        let node = self.composer.view().node_id.to_string();
        wait_until_shown(control, &node, SHOWN_LIMIT).await?;
        if !order.spec.is_empty() {
            update(control, &order.spec).await?;
        }
        Ok(json_response(StatusCode::OK, &json!(node)))
    }

    /// Makes the manager on this node the only one of its cluster, with the data that it has.
    pub(super) async fn force_new_cluster(&self) -> Result<Response<Body>, ApiError> {
        let control = self.composer.any_control();
        call(control, CALL_LIMIT, Method::POST, FORCE_NEW_PATH, None).await?;
        let node = self.composer.view().node_id.to_string();
        wait_until_gone(control, &node).await;
        wait_until_shown(control, &node, FOUNDING_LIMIT).await?;
        Ok(json_response(StatusCode::OK, &json!(node)))
    }
}

/// Waits until the manager that was told to start again serves no more. It may have served nobody
/// before, or be back already.
async fn wait_until_gone(control: &Upstream, node: &str) {
    let deadline = Instant::now() + GONE_LIMIT;
    while Instant::now() < deadline {
        if call(control, CALL_LIMIT, Method::GET, &format!("/nodes/{node}"), None).await.is_err() {
            return;
        }
        sleep(LOOK_PAUSE).await;
    }
}

/// Waits until the cluster knows that its manager runs on this node: clients ask for its address.
async fn wait_until_shown(control: &Upstream, node: &str, limit: Duration) -> Result<(), ApiError> {
    let deadline = Instant::now() + limit;
    loop {
        let seen = call(control, CALL_LIMIT, Method::GET, &format!("/nodes/{node}"), None).await;
        match seen {
            Ok(seen) if seen["ManagerStatus"]["Addr"].as_str().is_some_and(|text| !text.is_empty()) => {
                return Ok(());
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Ok(_) if Instant::now() > deadline => {
                let reason = "it does not show this node as a manager yet".to_owned();
                return Err(ApiError::Unreadable { peer: Peer::Control, reason });
            }
            Ok(_) | Err(_) => sleep(LOOK_PAUSE).await,
        }
    }
}

/// Writes what the client set of the swarm's spec.
async fn update(control: &Upstream, spec: &Map<String, Value>) -> Result<(), ApiError> {
    let swarm = call(control, CALL_LIMIT, Method::GET, "/swarm", None).await?;
    let mut whole = swarm["Spec"].as_object().cloned().unwrap_or_default();
    for (part, fields) in spec {
        match (whole.get_mut(part), fields) {
            (Some(Value::Object(present)), Value::Object(fields)) => {
                let set = fields.iter().filter(|(_, value)| !value.is_null());
                present.extend(set.map(|(name, value)| (name.clone(), value.clone())));
            }
            _ => drop(whole.insert(part.clone(), fields.clone())),
        }
    }
    let version = swarm["Version"]["Index"].as_u64().unwrap_or_default();
    let path = format!("/swarm/update?version={version}");
    call(control, CALL_LIMIT, Method::POST, &path, Some(&Value::Object(whole))).await.map(drop)
}

/// One call to the manager; its answer as JSON, or its refusal in its own words.
pub(super) async fn call(
    control: &Upstream,
    limit: Duration,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, ApiError> {
    let uri: Uri = path.parse().map_err(unreadable)?;
    let text = body.map(Value::to_string).unwrap_or_default();
    let mut request = Request::new(Full::<Bytes>::from(text));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    if body.is_some() {
        let kind = hyper::header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, kind);
    }
    let answer = control.call_within(limit, request).await?;
    let status = answer.status();
    let bytes = control.read(answer.into_body(), ANSWER_BYTES_MAX).await?;
    if status.is_success() {
        return if bytes.is_empty() {
            Ok(Value::Null)
        } else {
            serde_json::from_slice(&bytes).map_err(unreadable)
        };
    }
    let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = said["message"].as_str().unwrap_or("mesh-control refused without a reason").to_owned();
    Err(ApiError::Founding { status, message })
}

fn unreadable(error: impl std::fmt::Display) -> ApiError {
    ApiError::Unreadable { peer: Peer::Control, reason: error.to_string() }
}
