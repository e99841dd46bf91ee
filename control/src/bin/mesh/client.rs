//! A small client of the Docker API: one request per connection, over a unix socket or TCP, with a
//! deadline.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The deadline of one request, connecting included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes of an answer.
const ANSWER_BYTES_MAX: usize = mesh_backup::content::BYTES_MAX;

/// The address of a Docker API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) if address.contains(':') => {
                Ok(Self::Tcp(address.trim_end_matches('/').to_owned()))
            }
            _ => Err("must be unix:///path or tcp://host:port".to_owned()),
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// Why a request failed.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    /// Nothing accepts the connection.
    #[error("reach {host}: is mesh-agent running on this node? (--host or MESH_HOST names another)")]
    Unreachable {
        /// The socket or address that could not be reached.
        host: Host,
        /// The error of the call that failed.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke, or the answer isn't HTTP.
    #[error("talk to {host}")]
    Broken {
        /// The socket or address of the connection that broke off.
        host: Host,
        /// The error of the call that failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer came in time.
    #[error("{host} did not answer within {limit:?}")]
    Deadline {
        /// The socket or address that gave no answer in time.
        host: Host,
        /// How long it had.
        limit: Duration,
    },
    /// The answer is an error.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Docker's message.
        message: String,
    },
    /// The answer differs from what Docker's API documents.
    #[error("{host} answered something else than Docker's API documents: {what}")]
    Unreadable {
        /// The socket or address that the answer came from.
        host: Host,
        /// What is missing or wrong.
        what: String,
    },
}

/// A client of one host.
#[derive(Debug)]
pub(crate) struct Client {
    host: Host,
}

impl Client {
    /// A client of `host`; it doesn't connect yet.
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.send(Method::GET, path, None).await
    }

    /// Sends a POST request with a JSON body.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Sends a DELETE request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.send(Method::DELETE, path, None).await
    }

    /// The error for an answer without `what`.
    pub(crate) fn unreadable(&self, what: impl Into<String>) -> ClientError {
        ClientError::Unreadable { host: self.host.clone(), what: what.into() }
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let bytes = self.bytes(method, path, Bytes::from(text), REQUEST_TIMEOUT).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|error| self.unreadable(error.to_string()))
    }

    /// Sends a request, whose whole answer must come within `limit`; returns the answer's bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        match timeout(limit, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Deadline { host: self.host.clone(), limit }),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Bytes, ClientError> {
        let unreachable = |source| ClientError::Unreachable { host: self.host.clone(), source };
        match &self.host {
            Host::Unix(path) => {
                self.talk(UnixStream::connect(path).await.map_err(unreachable)?, request).await
            }
            Host::Tcp(address) => {
                self.talk(TcpStream::connect(address).await.map_err(unreachable)?, request).await
            }
        }
    }

    async fn talk<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<Bytes, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
            self.read(response).await
        };
        // The connection must be polled until the answer is read; how it ends after that doesn't
        // matter.
        tokio::select! {
            answer = exchange => answer,
            Err(error) = connection => Err(self.broken(error)),
        }
    }

    async fn read(&self, response: Response<hyper::body::Incoming>) -> Result<Bytes, ClientError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let bytes = body
            .collect()
            .await
            .map_err(|source| ClientError::Broken { host: self.host.clone(), source })?
            .to_bytes();
        if status.is_success() {
            return Ok(bytes);
        }
        let message = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|value| value["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| format!("{} answered {status}", self.host));
        Err(ClientError::Refused { status: status.as_u16(), message })
    }

    fn broken(&self, error: impl std::error::Error + Send + Sync + 'static) -> ClientError {
        ClientError::Broken { host: self.host.clone(), source: Box::new(error) }
    }
}

/// Escapes a name or id as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect::<Vec<_>>()
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_parsed_and_shown_alike() {
        for text in ["unix:///run/mesh/docker.sock", "tcp://10.77.0.11:2375"] {
            assert_eq!(text.parse::<Host>().map(|host| host.to_string()), Ok(text.to_owned()));
        }
        for text in ["/run/docker.sock", "unix://relative", "ssh://host", "tcp://host"] {
            assert!(text.parse::<Host>().is_err(), "{text} was taken for a host");
        }
    }

    #[test]
    fn a_segment_is_escaped() {
        assert_eq!(segment("web-1_a.b"), "web-1_a.b");
        assert_eq!(segment("a/../b?c d"), "a%2F..%2Fb%3Fc%20d");
    }
}
