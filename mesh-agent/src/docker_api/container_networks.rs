//! Containers that clients create (`docker run --network`): they can't join the cluster's networks.
//!
//! The engine has a bridge for each network of the node's tasks. It would let any container join
//! it, with an address of its own choice, which the cluster may have given to a task on another
//! node.
//!
//! Invariant: a container is created on a network of the cluster's by the agent only.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::{Request, Response};
use serde_json::Value;

use super::Body;
use super::compose::Composer;
use super::error::ApiError;
use super::network_owner::Owner;
use crate::view::NodeView;

/// The most bytes of a container to create. The CLI's are a few thousand.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Modes of a container's network that name no network of a user's.
const BUILT_IN: [&str; 5] = ["", "default", "bridge", "host", "none"];

impl Composer {
    /// `POST /containers/create`: the engine's, unless it names a network of the cluster's.
    pub(super) async fn container_create(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let (head, body) = request.into_parts();
        let bytes = Limited::new(body, REQUEST_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| ApiError::BadRequest(format!("cannot read the container to create: {error}")))?
            .to_bytes();
        let prefix = head.uri.path().split_once("/containers/").map_or("", |(prefix, _)| prefix);
        for name in networks_of(&bytes) {
            match self.owner(prefix, &name).await? {
                Owner::Cluster | Owner::Bridge => return Err(ApiError::NotAttachable(name)),
                // A worker has no manager to ask, but its view has the cluster's networks.
                Owner::Nobody if is_in(&self.view(), &name) => return Err(ApiError::NotAttachable(name)),
                // The engine refuses what nobody has in its own words.
                Owner::Engine | Owner::Nobody => {}
            }
        }
        let mut request = Request::from_parts(head, Full::new(bytes));
        request.headers_mut().remove(TRANSFER_ENCODING);
        request.headers_mut().remove(CONTENT_LENGTH);
        Ok(self.engine().call(request).await?.map(BodyExt::boxed))
    }
}

/// Whether the cluster has a network of this name or id.
fn is_in(view: &NodeView, name: &str) -> bool {
    view.networks.values().any(|network| network.name == name || network.id.as_str() == name)
}

/// The users' networks that a container is to be on; none, if the body is not JSON, which the
/// engine refuses.
fn networks_of(body: &[u8]) -> Vec<String> {
    let container = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let mode = field(&container, "HostConfig").and_then(|host| field(host, "NetworkMode"));
    let mode = mode.and_then(Value::as_str).unwrap_or_default();
    let endpoints = field(&container, "NetworkingConfig").and_then(|config| field(config, "EndpointsConfig"));
    let endpoints = endpoints.and_then(Value::as_object).into_iter().flatten();
    let mut names: Vec<String> = endpoints.map(|(name, _)| name.clone()).collect();
    names.push(mode.to_owned());
    names.retain(|name| !BUILT_IN.contains(&name.as_str()) && !name.starts_with("container:"));
    names.sort_unstable();
    names.dedup();
    names
}

/// A field by its name in any case, as in Go.
fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let mut fields = object.as_object().into_iter().flatten();
    fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_of_naming_a_users_network_is_found() {
        let of = |container: Value| networks_of(container.to_string().as_bytes());
        assert_eq!(of(json!({"HostConfig": {"NetworkMode": "app"}})), ["app"]);
        assert_eq!(of(json!({"hostconfig": {"networkmode": "app"}})), ["app"], "Go reads any case");
        let both = json!({"HostConfig": {"NetworkMode": "app"},
                          "NetworkingConfig": {"EndpointsConfig": {"app": {}, "db": null}}});
        assert_eq!(of(both), ["app", "db"]);
        for built_in in ["", "default", "bridge", "host", "none", "container:x"] {
            let named = of(json!({"HostConfig": {"NetworkMode": built_in}}));
            assert!(named.is_empty(), "{built_in} is no network of a user's: {named:?}");
        }
        assert!(of(json!({"Image": "busybox", "HostConfig": null})).is_empty());
        assert!(networks_of(b"{").is_empty());
    }
}
