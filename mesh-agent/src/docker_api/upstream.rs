//! One call to the engine or to the manager on this node, over its unix socket.
//!
//! Invariant: a connection carries one call, so a client that goes away cancels its call, and a
//! hijacked stream has a connection of its own.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as HttpBody, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tracing::debug;

use super::error::{ApiError, Peer};
use mesh_state::api_paths::NO_CLUSTER_HEADER;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits of a call that passes through.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    /// The deadline of the answer's head.
    pub(super) answer: Option<Duration>,
    /// The most bytes of the request's body.
    pub(super) body_bytes: Option<u64>,
}

/// A server behind a unix socket.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    peer: Peer,
    socket: PathBuf,
}

impl Upstream {
    pub(super) fn new(peer: Peer, socket: PathBuf) -> Self {
        Self { peer, socket }
    }

    /// Checks that control's socket exists, before the request's body is read.
    ///
    /// # Errors
    /// [`ApiError::NotAManager`].
    pub(super) fn present(&self) -> Result<&Self, ApiError> {
        if self.peer == Peer::Control && !self.socket.exists() {
            Err(ApiError::NotAManager)
        } else {
            Ok(self)
        }
    }

    /// Sends `request` and returns the head of the answer with its body still streaming. There is
    /// no deadline on the answer: `docker wait` takes as long as the container.
    ///
    /// # Errors
    /// [`ApiError::NotAManager`] if nothing listens on control's socket, else that the upstream
    /// can't be reached or closed the connection.
    pub(super) async fn call<B>(&self, mut request: Request<B>) -> Result<Response<Incoming>, ApiError>
    where
        B: HttpBody + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.socket))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.broken(source))?;
        let peer = self.peer;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(error = mesh_runtime::error_chain(&error), ?peer, "connection to upstream ended");
            }
        });
        *request.uri_mut() = origin_form(request.uri());
        request.headers_mut().entry(HOST).or_insert(HeaderValue::from_static("docker"));
        let answer = sender.send_request(request).await.map_err(|source| self.broken(source))?;
        // A manager that waits for its cluster is none yet.
        if self.peer == Peer::Control && answer.headers().contains_key(NO_CLUSTER_HEADER) {
            return Err(ApiError::NotAManager);
        }
        Ok(answer)
    }

    /// Like [`Upstream::call`], with a deadline on the answer's head.
    pub(super) async fn call_within<B>(
        &self,
        limit: Duration,
        request: Request<B>,
    ) -> Result<Response<Incoming>, ApiError>
    where
        B: HttpBody + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let late =
            || ApiError::Late { peer: self.peer, socket: self.socket.clone(), seconds: limit.as_secs() };
        tokio::time::timeout(limit, self.call(request)).await.map_err(|_| late())?
    }

    /// Reads an answer that is to be changed, up to `bytes_max`.
    pub(super) async fn read(&self, body: Incoming, bytes_max: usize) -> Result<Bytes, ApiError> {
        let collected = Limited::new(body, bytes_max).collect().await;
        collected
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| ApiError::Unreadable { peer: self.peer, reason: error.to_string() })
    }

    /// Reads an answer and parses it as JSON.
    pub(super) async fn read_json(
        &self,
        body: Incoming,
        bytes_max: usize,
    ) -> Result<serde_json::Value, ApiError> {
        let bytes = self.read(body, bytes_max).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::Unreadable { peer: self.peer, reason: error.to_string() })
    }

    fn unreachable(&self, source: io::Error) -> ApiError {
        // mesh-control runs on managers only. One that was killed leaves its socket file behind.
        let absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&source.kind());
        if self.peer == Peer::Control && absent {
            return ApiError::NotAManager;
        }
        ApiError::Unreachable { peer: self.peer, socket: self.socket.clone(), source }
    }

    fn broken(&self, source: hyper::Error) -> ApiError {
        ApiError::Broken { peer: self.peer, socket: self.socket.clone(), source }
    }
}

/// Path and query alone, which is what servers expect (RFC 9112 §3.2.1).
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from)
}
