//! Calls about networks: merges the engine's networks and the cluster's into one list.
//!
//! Invariants: the bridges that the agent makes for the cluster's networks are no networks of
//! their own to clients ([`super::overlay`]). Beyond these, engine and cluster have no network of
//! the same name, as far as creators use this socket; where they do, a call that names it is
//! refused, never answered by whichever comes first. A container is never reported as connected to
//! a network that it did not join.
//!
//! Left to others: the cluster's networks themselves (mesh-control).

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde_json::{Value, json};
use tracing::debug;

use super::Body;
use super::attached_body;
use super::compose::{
    ANSWER_BYTES_MAX, ASIDE_TIMEOUT, CONTROL_TIMEOUT, Composer, ENGINE_TIMEOUT, bodyless, replaced,
    with_query,
};
use super::error::{ApiError, Peer};
use super::filters::{Query, percent_decode, percent_encode};
use super::network_owner::{Cluster, Owner};
use super::overlay::{CLUSTER_SCOPE, cluster_id, joined_networks, joined_pruned, seen_here, with_endpoints};
use crate::task::networks::NETWORK_LABEL;
use crate::view::NodeView;

/// The most bytes of a request that is read here.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

impl Composer {
    /// `GET /networks`: the engine's, then the cluster's.
    pub(super) async fn network_list(&self, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let engine = self.engine.call_within(ENGINE_TIMEOUT, bodyless(request));
        let (engine, cluster) = tokio::join!(engine, self.control_json(ASIDE_TIMEOUT, bodyless(request)));
        let engine = engine?;
        if engine.status() != StatusCode::OK {
            return Ok(engine.map(BodyExt::boxed));
        }
        let (head, body) = engine.into_parts();
        let local = self.engine.read_json(body, ANSWER_BYTES_MAX).await?;
        let cluster = match cluster {
            Ok(networks) => Some(networks),
            Err(error) => {
                debug!(
                    error = mesh_runtime::error_chain(&error),
                    "list networks without the cluster's: the manager can't be asked"
                );
                None
            }
        };
        Ok(replaced(head, &joined_networks(local, cluster, &self.view().networks)))
    }

    /// `POST /networks/create`: networks of driver overlay or scope swarm are the cluster's.
    pub(super) async fn network_create(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let (head, body) = request.into_parts();
        let bytes = Limited::new(body, REQUEST_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| ApiError::BadRequest(format!("cannot read the network to create: {error}")))?
            .to_bytes();
        let asked = NetworkRequest::read(&bytes)?;
        if self.is_name_taken(&head, &asked).await? {
            return Err(ApiError::NetworkExists(asked.name));
        }
        let is_clusters = asked.is_clusters;
        let mut request = Request::from_parts(head, Full::new(bytes));
        request.headers_mut().remove(TRANSFER_ENCODING);
        request.headers_mut().remove(CONTENT_LENGTH);
        let answered = match self.control() {
            Ok(control) if is_clusters => control.call(request).await,
            Err(error) if is_clusters => Err(error),
            _ => self.engine.call(request).await,
        };
        match answered {
            Err(ApiError::NotAManager) => Err(ApiError::NetworkOnWorker),
            answered => Ok(answered?.map(BodyExt::boxed)),
        }
    }

    /// `POST /networks/prune`: prunes the engine's networks and the cluster's. Those that the agent
    /// made stay, as they may have no tasks just now. If the client's own filter can't be combined
    /// with that exception, the engine removes them too and the agent makes them again: the answer
    /// doesn't name them.
    pub(super) async fn network_prune(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let mut asked = bodyless(request);
        let mut made_again = Vec::new();
        match Query::of(request.uri()).with_filter("label!", NETWORK_LABEL) {
            Some(query) => *asked.uri_mut() = with_query(request.uri(), &query)?,
            None => made_again = self.own_names(split(request.uri()).0).await?,
        }
        let engine = self.engine.call_within(ENGINE_TIMEOUT, asked).await?;
        if engine.status() != StatusCode::OK {
            return Ok(engine.map(BodyExt::boxed));
        }
        let (head, body) = engine.into_parts();
        let local = self.engine.read_json(body, ANSWER_BYTES_MAX).await?;
        let cluster = match self.control_json(CONTROL_TIMEOUT, bodyless(request)).await {
            Ok(pruned) => pruned,
            Err(error) => {
                debug!(
                    error = mesh_runtime::error_chain(&error),
                    "prune networks without the cluster's: the manager can't be asked"
                );
                Value::Null
            }
        };
        Ok(replaced(head, &joined_pruned(&cluster, &local, &made_again)))
    }

    /// The names of the engine's networks that the agent made; `prefix` is the version in a call's
    /// path.
    async fn own_names(&self, prefix: &str) -> Result<Vec<Value>, ApiError> {
        let filters = json!({"label": [NETWORK_LABEL]}).to_string();
        let mut asked = Request::new(Empty::<Bytes>::new());
        *asked.uri_mut() = path(&format!("{prefix}/networks?filters={}", percent_encode(&filters)))?;
        let listed = self.engine.call_within(ENGINE_TIMEOUT, asked).await?;
        let listed = self.engine.read_json(listed.into_body(), ANSWER_BYTES_MAX).await?;
        Ok(listed.as_array().into_iter().flatten().map(|network| network["Name"].clone()).collect())
    }

    /// `GET` and `DELETE /networks/{x}`: goes to whoever has the network.
    pub(super) async fn network_one(&self, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let scope = Query::of(request.uri()).value("scope").unwrap_or_default();
        let owner = match (scope.as_str(), self.control()) {
            ("", _) => {
                let (prefix, segment) = split(request.uri());
                self.owner(prefix, &percent_decode(segment)).await?
            }
            (CLUSTER_SCOPE, Ok(_)) => Owner::Cluster,
            _ => Owner::Engine,
        };
        let is_read = request.method() == Method::GET;
        let answer = match owner {
            Owner::Bridge if is_read => return self.seen_here(request).await,
            Owner::Cluster | Owner::Bridge => {
                match self.control()?.call_within(CONTROL_TIMEOUT, bodyless(request)).await {
                    // As on Swarm's workers, which see few of the cluster's networks.
                    Err(ApiError::NotAManager) if scope == CLUSTER_SCOPE => {
                        return Err(ApiError::NoSuchNetwork(named(request.uri())));
                    }
                    answered => answered?,
                }
            }
            Owner::Engine => self.engine.call(bodyless(request)).await?,
            Owner::Nobody => return Err(ApiError::NoSuchNetwork(named(request.uri()))),
        };
        if owner == Owner::Cluster && is_read && answer.status() == StatusCode::OK {
            return self.with_endpoints(request, answer).await;
        }
        Ok(answer.map(BodyExt::boxed))
    }

    /// The cluster's network as a manager shows it, with what the engine knows of its containers
    /// here.
    async fn with_endpoints(
        &self,
        request: &Request<Incoming>,
        answer: Response<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let (head, body) = answer.into_parts();
        let network = self.control()?.read_json(body, ANSWER_BYTES_MAX).await?;
        let (prefix, _) = split(request.uri());
        let name = percent_encode(network["Name"].as_str().unwrap_or_default());
        let mut asked = bodyless(request);
        *asked.uri_mut() = path(&format!("{prefix}/networks/{name}"))?;
        let bridge = self.engine.call_within(ENGINE_TIMEOUT, asked).await?;
        if bridge.status() != StatusCode::OK {
            return Ok(replaced(head, &network));
        }
        let bridge = self.engine.read_json(bridge.into_body(), ANSWER_BYTES_MAX).await?;
        Ok(replaced(head, &with_endpoints(network, &bridge)))
    }

    /// A network of the cluster's as this node knows it by its bridge.
    async fn seen_here(&self, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let answer = self.engine.call_within(ENGINE_TIMEOUT, bodyless(request)).await?;
        if answer.status() != StatusCode::OK {
            return Ok(answer.map(BodyExt::boxed));
        }
        let (head, body) = answer.into_parts();
        let bridge = self.engine.read_json(body, ANSWER_BYTES_MAX).await?;
        Ok(replaced(head, &seen_here(bridge, &self.view().networks)))
    }

    /// Checks that a container may join the network that `POST /networks/{x}/connect` names: the
    /// engine or the cluster must have it. For a stopped container the engine itself accepts a
    /// network that it doesn't know, and the container can't be started then. Returns whether it is
    /// the cluster's.
    pub(super) async fn connectable(&self, request: &Request<Incoming>) -> Result<bool, ApiError> {
        let (prefix, segment) = split(request.uri());
        let name = percent_decode(segment);
        match self.owner(prefix, &name).await? {
            Owner::Engine => Ok(false),
            Owner::Cluster | Owner::Bridge => Ok(true),
            Owner::Nobody if knows(&self.view(), &name) => Ok(true),
            Owner::Nobody => Err(ApiError::NoSuchNetwork(name)),
        }
    }

    /// Decides who has the network that a client names; `prefix` is the version in its call's path.
    ///
    /// # Errors
    /// Both have a network that matches equally well, or the engine can't be asked.
    pub(super) async fn owner(&self, prefix: &str, query: &str) -> Result<Owner, ApiError> {
        let inspect = |uri: Uri| {
            let mut asked = Request::new(Empty::new());
            *asked.uri_mut() = uri;
            asked
        };
        let uri = path(&format!("{prefix}/networks/{}", percent_encode(query)))?;
        let engine = self.engine.call_within(ENGINE_TIMEOUT, inspect(uri.clone())).await?;
        let local = match engine.status() {
            StatusCode::OK => Some(self.engine.read_json(engine.into_body(), ANSWER_BYTES_MAX).await?),
            StatusCode::NOT_FOUND => None,
            // If the engine has several that match, it refuses the call itself.
            _ => return Ok(Owner::Engine),
        };
        let cluster = match self.cluster_knows(inspect(uri)).await {
            Ok(known) => known,
            Err(error) => {
                debug!(
                    error = mesh_runtime::error_chain(&error),
                    "look for a network in the engine only: the manager can't be asked"
                );
                Cluster::Away
            }
        };
        Owner::of(local.as_ref(), &cluster, query)
    }

    /// What the manager says of a network.
    async fn cluster_knows(&self, asked: Request<Empty<Bytes>>) -> Result<Cluster, ApiError> {
        let control = self.control()?;
        let answer = control.call_within(ASIDE_TIMEOUT, asked).await?;
        match answer.status() {
            StatusCode::OK => {
                let network = control.read_json(answer.into_body(), ANSWER_BYTES_MAX).await?;
                Ok(Cluster::Has(network))
            }
            StatusCode::NOT_FOUND => Ok(Cluster::HasNot),
            status => {
                Err(ApiError::Unreadable { peer: Peer::Control, reason: format!("it answered {status}") })
            }
        }
    }

    /// Whether the other of engine and cluster has a network of the name to create. Each checks its
    /// own names.
    async fn is_name_taken(&self, head: &Parts, asked: &NetworkRequest) -> Result<bool, ApiError> {
        if asked.name.is_empty() {
            return Ok(false);
        }
        let prefix = head.uri.path().split_once("/networks/").map_or("", |(prefix, _)| prefix);
        let filters = json!({"name": {asked.name.as_str(): true}}).to_string();
        let mut listing = Request::new(Empty::new());
        *listing.uri_mut() = path(&format!("{prefix}/networks?filters={}", percent_encode(&filters)))?;
        let listed = if asked.is_clusters {
            let engine = self.engine.call_within(ENGINE_TIMEOUT, listing).await?;
            self.engine.read_json(engine.into_body(), ANSWER_BYTES_MAX).await?
        } else {
            match self.control_json(ASIDE_TIMEOUT, listing).await {
                Ok(networks) => networks,
                Err(error) => {
                    // Creating an engine network needs no manager.
                    debug!(
                        error = mesh_runtime::error_chain(&error),
                        "create a network without asking for the cluster's"
                    );
                    Value::Null
                }
            }
        };
        // A bridge of a removed network goes away by itself.
        let counts = |network: &&Value| !asked.is_clusters || cluster_id(network).is_none();
        let mut listed = listed.as_array().into_iter().flatten().filter(counts);
        Ok(listed.any(|network| network["Name"] == asked.name.as_str()))
    }
}

/// The fields of a network to create that are read here.
#[derive(Debug, PartialEq, Eq)]
struct NetworkRequest {
    name: String,
    is_clusters: bool,
}

impl NetworkRequest {
    /// Parses a body. A network that only holds settings is the engine's.
    ///
    /// # Errors
    /// It isn't JSON, or a field comes twice: engine and cluster would read it in different ways.
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        let request = attached_body::read(body).map_err(ApiError::BadRequest)?;
        let field = |name: &str| attached_body::field(&request, name).cloned().unwrap_or_default();
        let is_clusters = field("ConfigOnly") != true
            && (field("Driver") == "overlay" || field("Scope") == CLUSTER_SCOPE || field("Ingress") == true);
        Ok(Self { name: field("Name").as_str().unwrap_or_default().to_owned(), is_clusters })
    }
}

/// The part of a path before `/networks/`, and the one behind it, still percent-encoded.
pub(super) fn split(uri: &Uri) -> (&str, &str) {
    let (prefix, rest) = uri.path().split_once("/networks/").unwrap_or_default();
    (prefix, rest.split('/').next().unwrap_or_default())
}

/// Whether the cluster has a network of this name or id, as far as this node knows.
pub(super) fn knows(view: &NodeView, name: &str) -> bool {
    view.networks.values().any(|network| network.name == name || network.id.as_str() == name)
}

/// The network that a path names.
fn named(uri: &Uri) -> String {
    percent_decode(split(uri).1)
}

fn path(text: &str) -> Result<Uri, ApiError> {
    text.parse().map_err(|error| ApiError::BadRequest(format!("cannot ask for the network: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_networks_are_the_clusters() {
        let is_clusters = |body: &[u8]| NetworkRequest::read(body).unwrap().is_clusters;
        assert!(is_clusters(br#"{"Name":"n","Driver":"overlay"}"#));
        assert!(
            is_clusters(br#"{"name":"n","driver":"overlay"}"#),
            "Go's clients may write keys in any case"
        );
        assert!(is_clusters(br#"{"Name":"n","Scope":"swarm","Driver":"bridge"}"#));
        assert!(!is_clusters(br#"{"Name":"n","Driver":"bridge"}"#));
        assert!(!is_clusters(br#"{"Name":"n","Driver":"overlay","ConfigOnly":true}"#));
        assert_eq!(NetworkRequest::read(br#"{"NAME":"n"}"#).unwrap().name, "n");
        for unclear in [&b"{"[..], br#"{"Driver":"bridge","driver":"overlay"}"#] {
            assert!(NetworkRequest::read(unclear).is_err(), "who has it depends on the reader");
        }
    }

    #[test]
    fn a_path_names_a_network_with_and_without_a_version() {
        let split = |text: &'static str| {
            let uri = Uri::from_static(text);
            let (prefix, segment) = split(&uri);
            (prefix.to_owned(), segment.to_owned())
        };
        let (none, version) = (String::new(), "/v1.41".to_owned());
        assert_eq!(split("/networks/n?verbose=1"), (none, "n".to_owned()));
        assert_eq!(split("/v1.41/networks/n/connect"), (version, "n".to_owned()));
        assert_eq!(named(&Uri::from_static("/networks/a%20b/connect")), "a b");
    }
}
