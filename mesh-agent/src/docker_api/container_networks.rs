//! Containers that clients put on the cluster's networks (`docker run --network`, `docker network
//! connect`).
//!
//! The engine has a bridge for each network of the node's containers, and would let any container
//! join it with an address of its own choice, which the cluster may have given to a task on another
//! node. So the cluster is asked for an address first, and the engine is told that one.
//!
//! Invariants: a container gets on a network of the cluster's with the cluster's address only. What
//! has begun is finished, whether the client waits for it or not.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Uri};
use mesh_state::proto::AttachRequest;
use serde_json::{Value, json};

use super::Body;
use super::attached_body::{self, Endpoint, Place, field_mut, networks_of, set_address, text};
use super::attachments::{Attachments, Joining};
use super::compose::{ANSWER_BYTES_MAX, Composer, ENGINE_TIMEOUT, replaced};
use super::error::{ApiError, Peer, full};
use super::filters::{Query, is_task, percent_decode, percent_encode};
use super::network_owner::Owner;
use super::networks::{knows, split};
use super::upstream::Upstream;

/// The most bytes of a container to create. The CLI's are a few thousand.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The engine's own network, which leads outside.
const WAY_OUT: &str = "bridge";

impl Composer {
    /// `POST /containers/create`: the engine's, with the cluster's addresses on the networks of the
    /// cluster's that it names.
    pub(super) async fn container_create(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let (head, bytes) = read(request).await?;
        let prefix = head.uri.path().split_once("/containers/").map_or("", |(prefix, _)| prefix).to_owned();
        // The engine accepts more than JSON (bytes behind it, broken text), so it can't be left to
        // it to refuse what can't be read here.
        let container = if bytes.is_empty() {
            Value::Null
        } else {
            attached_body::read(&bytes).map_err(ApiError::BadRequest)?
        };
        let mut named = Vec::new();
        for name in networks_of(&container) {
            if self.is_clusters(&prefix, &name).await? {
                named.push(name);
            }
        }
        let Some(first) = named.first() else {
            return Ok(self.engine().call(with_body(head, bytes)).await?.map(BodyExt::boxed));
        };
        let attachments = self.attachments(first)?;
        let creation =
            Creation { engine: self.engine().clone(), attachments, prefix, head, container, named };
        finished(creation.run()).await
    }

    /// `POST /networks/{x}/connect` of a network of the cluster's.
    pub(super) async fn cluster_connect(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let (head, bytes) = read(request).await?;
        let body = attached_body::read(&bytes).map_err(ApiError::BadRequest)?;
        let (prefix, segment) = split(&head.uri);
        let (prefix, named) = (prefix.to_owned(), percent_decode(segment));
        let attachments = self.attachments(&named)?;
        let connection = Connection { engine: self.engine().clone(), attachments, prefix, named, head, body };
        finished(connection.run()).await
    }

    /// The path of `POST /networks/{x}/disconnect` as the engine knows the network: the bridge of a
    /// network of the cluster's has another id, and the same name.
    pub(super) fn disconnect_path(&self, uri: &Uri) -> Result<Option<Uri>, ApiError> {
        let (prefix, segment) = split(uri);
        let view = self.view();
        match view.networks.get(&percent_decode(segment).into()) {
            Some(network) => path(&prefix_path(prefix, &network.name, "disconnect")).map(Some),
            None => Ok(None),
        }
    }

    /// Whether a network that a client names is the cluster's.
    pub(super) async fn is_clusters(&self, prefix: &str, name: &str) -> Result<bool, ApiError> {
        match self.owner(prefix, name).await? {
            Owner::Cluster | Owner::Bridge => Ok(true),
            // A worker has no manager to ask, but its view has the cluster's networks.
            Owner::Nobody => Ok(knows(&self.view(), name)),
            // The engine refuses what nobody has in its own words.
            Owner::Engine => Ok(false),
        }
    }
}

/// A container to create on networks of the cluster's.
struct Creation {
    engine: Upstream,
    attachments: Arc<Attachments>,
    /// The version in the call's path.
    prefix: String,
    head: Parts,
    container: Value,
    /// The cluster's networks, as the client names them.
    named: Vec<String>,
}

impl Creation {
    async fn run(mut self) -> Result<Response<Body>, ApiError> {
        let name = Query::of(&self.head.uri).value("name").unwrap_or_default();
        let mut joining: Vec<Joining> = Vec::new();
        for named in &self.named {
            let endpoint = attached_body::endpoint_of(&self.container, named);
            let asked = AttachRequest {
                container_name: name.trim_start_matches('/').to_owned(),
                hostname: text(&self.container, "Hostname").unwrap_or_default().to_owned(),
                ..asking(named, endpoint)?
            };
            joining.push(self.attachments.join(named, asked).await?);
        }
        let places: Vec<Place> = joining.iter().map(|joining| joining.place.clone()).collect();
        let lacks_way_out = attached_body::lacks_way_out(&self.container, &places);
        attached_body::put_on(&mut self.container, &places);
        let request = with_body(self.head, self.container.to_string().into());
        let answer = self.engine.call(request).await?;
        let (head, body) = answer.into_parts();
        let bytes = self.engine.read(body, ANSWER_BYTES_MAX).await?;
        if head.status != StatusCode::CREATED || !lacks_way_out {
            return Ok(unchanged(head, bytes));
        }
        let mut made: Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::Unreadable { peer: Peer::Engine, reason: error.to_string() })?;
        let id = text(&made, "Id").unwrap_or_default().to_owned();
        if let Err(reason) = connect(&self.engine, &self.prefix, &id).await {
            let warning =
                format!("the container has no way out, it can't be connected to network {WAY_OUT}: {reason}");
            let warnings = field_mut(&mut made, "Warnings");
            let mut all = warnings.as_array().cloned().unwrap_or_default();
            all.push(json!(warning));
            *warnings = all.into();
        }
        Ok(replaced(head, &made))
    }
}

/// A container to connect to a network of the cluster's.
struct Connection {
    engine: Upstream,
    attachments: Arc<Attachments>,
    /// The version in the call's path.
    prefix: String,
    /// The network, as the client names it.
    named: String,
    head: Parts,
    body: Value,
}

impl Connection {
    async fn run(mut self) -> Result<Response<Body>, ApiError> {
        let container = text(&self.body, "Container").unwrap_or_default();
        let inspect = path(&format!("{}/containers/{}/json", self.prefix, percent_encode(container)))?;
        let mut asked = Request::new(Full::new(Bytes::new()));
        *asked.uri_mut() = inspect;
        let answer = self.engine.call_within(ENGINE_TIMEOUT, asked).await?;
        if answer.status() != StatusCode::OK {
            return Ok(answer.map(BodyExt::boxed));
        }
        let found = self.engine.read_json(answer.into_body(), ANSWER_BYTES_MAX).await?;
        if is_task(&found["Config"]["Labels"]) {
            return Err(ApiError::TasksNetworks);
        }
        let settings = field_mut(&mut self.body, "EndpointConfig");
        let asked = AttachRequest {
            container_id: found["Id"].as_str().unwrap_or_default().to_owned(),
            container_name: found["Name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned(),
            hostname: found["Config"]["Hostname"].as_str().unwrap_or_default().to_owned(),
            ..asking(&self.named, Endpoint::of(Some(settings)))?
        };
        let joining = self.attachments.join(&self.named, asked).await?;
        let network = &joining.place.network;
        set_address(settings, network);
        self.head.uri = path(&prefix_path(&self.prefix, &network.name, "connect"))?;
        let request = with_body(self.head, self.body.to_string().into());
        let (head, body) = self.engine.call(request).await?.into_parts();
        let bytes = self.engine.read(body, ANSWER_BYTES_MAX).await?;
        Ok(unchanged(head, bytes))
    }
}

/// The further names and the address that a client asks for.
fn asking(network: &str, endpoint: Endpoint) -> Result<AttachRequest, ApiError> {
    if let Some(address) = endpoint.address6 {
        return Err(ApiError::ChosenIpv6 { network: network.to_owned(), address });
    }
    Ok(AttachRequest {
        aliases: endpoint.aliases,
        address: endpoint.address.unwrap_or_default(),
        ..AttachRequest::default()
    })
}

/// Connects a new container to the engine's own network. The error is for its user.
async fn connect(engine: &Upstream, prefix: &str, container: &str) -> Result<(), String> {
    let body = json!({"Container": container}).to_string();
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path(&prefix_path(prefix, WAY_OUT, "connect")).map_err(|error| error.to_string())?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let answer = engine
        .call_within(ENGINE_TIMEOUT, request)
        .await
        .map_err(|error| mesh_runtime::error_chain(&error))?;
    if answer.status().is_success() {
        return Ok(());
    }
    let refusal = engine.read_json(answer.into_body(), ANSWER_BYTES_MAX).await;
    let refusal = refusal.map_err(|error| mesh_runtime::error_chain(&error))?;
    Err(text(&refusal, "message").unwrap_or_default().to_owned())
}

/// The body of a request that is read here.
async fn read(request: Request<Incoming>) -> Result<(Parts, Bytes), ApiError> {
    let (head, body) = request.into_parts();
    let read = Limited::new(body, REQUEST_BYTES_MAX).collect().await;
    let read = read.map_err(|error| ApiError::BadRequest(format!("cannot read the request: {error}")))?;
    Ok((head, read.to_bytes()))
}

/// The request with a body of known bytes.
fn with_body(head: Parts, bytes: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::from_parts(head, Full::new(bytes));
    request.headers_mut().remove(TRANSFER_ENCODING);
    request.headers_mut().remove(CONTENT_LENGTH);
    request
}

/// The engine's answer, which was read here.
fn unchanged(mut head: hyper::http::response::Parts, bytes: Bytes) -> Response<Body> {
    head.headers.remove(TRANSFER_ENCODING);
    head.headers.remove(CONTENT_LENGTH);
    Response::from_parts(head, full(bytes))
}

fn prefix_path(prefix: &str, network: &str, verb: &str) -> String {
    format!("{prefix}/networks/{}/{verb}", percent_encode(network))
}

fn path(text: &str) -> Result<Uri, ApiError> {
    text.parse().map_err(|error| ApiError::BadRequest(format!("cannot ask the engine: {error}")))
}

/// Carries work out to its end, even if the client goes away: the engine would create the container
/// all the same, and nobody would know that its address is in use.
async fn finished(
    work: impl Future<Output = Result<Response<Body>, ApiError>> + Send + 'static,
) -> Result<Response<Body>, ApiError> {
    match tokio::spawn(work).await {
        Ok(answer) => answer,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ApiError::Unreadable { peer: Peer::Engine, reason: "the agent stops".to_owned() }),
        },
    }
}
