//! Composes answers from the engine's answer and the manager's.
//!
//! Invariant: the engine's answer is the base; if the manager can't be asked the base is returned
//! unchanged, except where the call is about the swarm only.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::{Request, Response, StatusCode, Uri};
use mesh_state::api_paths::LOCKED;
use serde_json::{Value, json};
use tracing::debug;

use super::attachments::Attachments;
use super::error::{ApiError, Peer, full};
use super::filters::{Query, is_task_container};
use super::promotion::Promotions;
use super::upstream::Upstream;
use super::{Body, Upstreams, events};
use crate::enrolment::{Enrolment, LocalState};
use crate::view::NodeView;

/// The most bytes of an answer that is read here.
pub(super) const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Deadline of the engine's part of a composed answer.
pub(super) const ENGINE_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of the engine's part of a ping, which a manager can answer alone.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of the manager's part of an answer that is complete without it.
pub(super) const ASIDE_TIMEOUT: Duration = Duration::from_secs(1);
/// Deadline of the manager's part.
pub(super) const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

const API_VERSION: HeaderName = HeaderName::from_static("api-version");
const SWARM: HeaderName = HeaderName::from_static("swarm");

/// Asks both upstreams and merges their answers.
pub(super) struct Composer {
    pub(super) engine: Upstream,
    control: Upstream,
    upstreams: Upstreams,
}

impl Composer {
    pub(super) fn new(upstreams: Upstreams) -> Self {
        let engine = Upstream::new(Peer::Engine, upstreams.engine.clone());
        let control = Upstream::new(Peer::Control, upstreams.control.clone());
        Self { engine, control, upstreams }
    }

    pub(super) fn engine(&self) -> &Upstream {
        &self.engine
    }

    /// What this node knows of the mesh.
    pub(super) fn view(&self) -> Arc<NodeView> {
        Arc::clone(&self.upstreams.view.borrow())
    }

    /// This node's containers on the cluster's networks, of which a client named one.
    ///
    /// # Errors
    /// [`ApiError::NotJoined`] before this node is a member.
    pub(super) fn attachments(&self, network: &str) -> Result<Arc<Attachments>, ApiError> {
        self.upstreams.attachments.load_full().ok_or_else(|| ApiError::NotJoined(network.to_owned()))
    }

    /// The manager on this node, of which only a call shows whether it runs.
    ///
    /// # Errors
    /// [`ApiError::NotAManager`] if this node is no member.
    pub(super) fn control(&self) -> Result<&Upstream, ApiError> {
        let is_member = self.upstreams.enrolment.state() == LocalState::Active;
        is_member.then_some(&self.control).ok_or(ApiError::NotAManager)
    }

    /// The manager on this node, whether or not this node is a member.
    pub(super) fn any_control(&self) -> &Upstream {
        &self.control
    }

    /// How far the manager on this node is.
    pub(super) fn promotions(&self) -> &Promotions {
        &self.upstreams.promotions
    }

    /// The port of this node's tunnel.
    pub(super) fn tunnel_port(&self) -> u16 {
        self.upstreams.tunnel_port
    }

    /// This node's membership.
    pub(super) fn enrolment(&self) -> &Enrolment {
        &self.upstreams.enrolment
    }

    /// `/_ping`: the engine's headers, the lower of both API versions, and the node's place in the
    /// swarm.
    pub(super) async fn ping(&self, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let control = async {
            match self.control() {
                Ok(control) => control.call_within(ASIDE_TIMEOUT, bodyless(request)).await,
                Err(error) => Err(error),
            }
        };
        let engine = self.engine.call_within(PING_TIMEOUT, bodyless(request));
        let (engine, control) = tokio::join!(engine, control);
        let place = match self.enrolment().state() {
            LocalState::Active if control.as_ref().is_ok_and(is_locked) => LOCKED,
            LocalState::Active if control.is_ok() => "active/manager",
            LocalState::Active => "active/worker",
            outside => outside.as_str(),
        };
        let (answer, other) = match (engine, control) {
            (Ok(engine), control) => (engine, control.ok()),
            (Err(error), Ok(control)) => {
                debug!(
                    error = mesh_runtime::error_chain(&error),
                    "answer ping without the engine, which can't be asked"
                );
                (control, None)
            }
            (Err(error), Err(_)) => return Err(error),
        };
        let mut answer = answer.map(BodyExt::boxed);
        answer.headers_mut().insert(SWARM, HeaderValue::from_static(place));
        if let Some(lower) = other.and_then(|other| other.headers().get(API_VERSION).cloned()) {
            let headers = answer.headers_mut();
            if headers.get(API_VERSION).is_none_or(|version| api_version(&lower) < api_version(version)) {
                headers.insert(API_VERSION, lower);
            }
        }
        Ok(answer)
    }

    /// `/info`: the engine's answer, with its swarm section replaced by mesh's.
    pub(super) async fn info(&self, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let engine = self.engine.call_within(ENGINE_TIMEOUT, bodyless(request));
        let (engine, section) = tokio::join!(engine, self.swarm_section(request));
        let engine = engine?;
        if engine.status() != StatusCode::OK {
            return Ok(engine.map(BodyExt::boxed));
        }
        let (head, body) = engine.into_parts();
        let mut info = self.engine.read_json(body, ANSWER_BYTES_MAX).await?;
        let swarm = match section {
            Ok(section) => section,
            Err(ApiError::NotAManager) => {
                let state = self.enrolment().state();
                let away = match ApiError::NotAManager.on_node(state, &self.promotions().borrow()) {
                    error @ ApiError::ManagerAway => error.to_string(),
                    _ => String::new(),
                };
                self.local_section(state.as_str(), &away)
            }
            Err(error) => self.local_section("error", &error.to_string()),
        };
        if let Some(fields) = info.as_object_mut() {
            fields.insert("Swarm".to_owned(), swarm);
            if let Some(fallback) = &*self.upstreams.fallback.borrow() {
                add_warning(fields, &format!("WARNING: mesh: {fallback}"));
            }
        }
        Ok(replaced(head, &info))
    }

    /// `GET /events`: the engine's and, where a manager runs, the cluster's.
    pub(super) async fn events(&self, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let engine = self.engine.call(bodyless(request)).await?;
        Ok(match self.control().ok() {
            Some(control) => events::merged(&bodyless(request), engine, control.clone()).await,
            None => engine.map(BodyExt::boxed),
        })
    }

    /// `GET /containers/json` with `is-task`: the engine's filter finds Swarm's own tasks only;
    /// mesh's tasks have a label.
    pub(super) async fn task_containers(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let query = Query::of(request.uri());
        let wanted =
            query.filter("is-task").is_some_and(|values| values.iter().any(|v| v == "true" || v == "1"));
        let mut asked = bodyless(request);
        *asked.uri_mut() = with_query(request.uri(), &query.with_task_filter_as_label(wanted))?;
        let engine = self.engine.call_within(ENGINE_TIMEOUT, asked).await?;
        if wanted || engine.status() != StatusCode::OK {
            return Ok(engine.map(BodyExt::boxed));
        }
        let (head, body) = engine.into_parts();
        let mut containers = self.engine.read_json(body, ANSWER_BYTES_MAX).await?;
        if let Some(containers) = containers.as_array_mut() {
            containers.retain(|container| !is_task_container(container));
        }
        Ok(replaced(head, &containers))
    }

    async fn swarm_section(&self, request: &Request<Incoming>) -> Result<Value, ApiError> {
        let mut info = self.control_json(ASIDE_TIMEOUT, bodyless(request)).await?;
        let mut section = info.get_mut("Swarm").map(Value::take).unwrap_or_default();
        let view = self.upstreams.view.borrow();
        // The agent knows its own node id best: a manager that has just started may not know yet on
        // which node it runs.
        if let Some(fields) = section.as_object_mut().filter(|_| !view.node_id.is_empty()) {
            fields.insert("NodeID".to_owned(), json!(view.node_id));
            fields.insert("NodeAddr".to_owned(), json!(view.address));
        }
        Ok(section)
    }

    /// The swarm section of `docker info` when no manager is asked.
    fn local_section(&self, state: &str, error: &str) -> Value {
        let view = self.upstreams.view.borrow();
        let address = if view.address.is_unspecified() { String::new() } else { view.address.to_string() };
        json!({
            "NodeID": view.node_id, "NodeAddr": address, "LocalNodeState": state, "ControlAvailable": false,
            "Error": error, "RemoteManagers": null,
        })
    }

    /// The manager's answer, if its status is 200.
    pub(super) async fn control_json(
        &self,
        limit: Duration,
        request: Request<Empty<Bytes>>,
    ) -> Result<Value, ApiError> {
        let control = self.control()?;
        let response = control.call_within(limit, request).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(ApiError::Unreadable {
                peer: Peer::Control,
                reason: format!("it answered {status}"),
            });
        }
        control.read_json(response.into_body(), ANSWER_BYTES_MAX).await
    }
}

/// The same call without its body, for calls that have none.
pub(super) fn bodyless(request: &Request<Incoming>) -> Request<Empty<Bytes>> {
    let mut copy = Request::new(Empty::new());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy.headers_mut().remove(CONTENT_LENGTH);
    copy.headers_mut().remove(TRANSFER_ENCODING);
    copy
}

/// The same path with another query.
pub(super) fn with_query(uri: &Uri, query: &Query) -> Result<Uri, ApiError> {
    format!("{}?{}", uri.path(), query.encoded())
        .parse()
        .map_err(|error| ApiError::BadRequest(format!("cannot rewrite the filters: {error}")))
}

/// The upstream's head with another body.
pub(super) fn replaced(mut head: hyper::http::response::Parts, value: &Value) -> Response<Body> {
    head.headers.remove(CONTENT_LENGTH);
    head.headers.remove(TRANSFER_ENCODING);
    Response::from_parts(head, full(format!("{value}\n")))
}

/// Whether a manager's answer says that it waits for `docker swarm unlock`.
fn is_locked<B>(answer: &Response<B>) -> bool {
    answer.headers().get(SWARM).is_some_and(|place| place.as_bytes() == LOCKED.as_bytes())
}

/// `1.41` as (1, 41): versions are compared as numbers.
fn api_version(header: &HeaderValue) -> (u32, u32) {
    let text = header.to_str().unwrap_or_default();
    let (major, minor) = text.split_once('.').unwrap_or((text, ""));
    (major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
}

/// Adds a warning that `docker info` prints.
fn add_warning(info: &mut serde_json::Map<String, Value>, warning: &str) {
    match info.get_mut("Warnings").and_then(Value::as_array_mut) {
        Some(warnings) => warnings.push(json!(warning)),
        None => drop(info.insert("Warnings".to_owned(), json!([warning]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let version = |text| api_version(&HeaderValue::from_static(text));
        assert!(version("1.9") < version("1.41"), "1.9 is older than 1.41");
        assert!(version("1.41") < version("1.50"));
        assert!(version("nonsense") < version("1.24"));
    }

    #[test]
    fn a_warning_joins_the_engines() {
        for (info, expected) in [
            (json!({ "Warnings": null }), json!(["ours"])),
            (json!({}), json!(["ours"])),
            (json!({ "Warnings": ["theirs"] }), json!(["theirs", "ours"])),
        ] {
            let mut info = info.as_object().cloned().unwrap_or_default();
            add_warning(&mut info, "ours");
            assert_eq!(info["Warnings"], expected);
        }
    }
}
