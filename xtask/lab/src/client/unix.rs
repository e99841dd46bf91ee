//! Requests to the HTTP servers behind Unix sockets, whatever their answer's status.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::http::{self, Response};

/// Sends a GET request for `path`, and waits for the answer.
///
/// # Errors
/// Nothing listens, or the server falls silent for `deadline`.
pub fn get(socket: &Path, path: &str, deadline: Duration) -> Result<Response> {
    exchange(socket, &format!("GET {path}"), "", deadline)
}

/// Posts `body` as JSON to `path`, and waits for the answer.
///
/// # Errors
/// Nothing listens, or the server falls silent for `deadline`.
pub fn post(socket: &Path, path: &str, body: &Value, deadline: Duration) -> Result<Response> {
    exchange(socket, &format!("POST {path}"), &body.to_string(), deadline)
}

/// Sends a DELETE request for `path`, and waits for the answer.
///
/// # Errors
/// Nothing listens, or the server falls silent for `deadline`.
pub fn delete(socket: &Path, path: &str, deadline: Duration) -> Result<Response> {
    exchange(socket, &format!("DELETE {path}"), "", deadline)
}

fn exchange(socket: &Path, line: &str, body: &str, deadline: Duration) -> Result<Response> {
    let words = || format!("{line} at {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(words)?;
    stream.set_read_timeout(Some(deadline)).context("set the read deadline")?;
    stream.set_write_timeout(Some(deadline)).context("set the write deadline")?;
    let head =
        format!("{line} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\n");
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).with_context(words)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(words)?;
    http::parse(&answer).with_context(words)
}
