//! Docker's API at a node's socket: one request on a connection of its own.
//!
//! Measurements use it instead of the docker CLI, whose own start takes longer than what they look
//! at.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::layout::NodeLayout;
use serde_json::{Value, json};

/// The deadline of a request, and of a state that is waited for.
const DEADLINE: Duration = Duration::from_mins(2);
/// The pause between two looks at a state.
const PAUSE: Duration = Duration::from_millis(20);
/// How often an object is created before it must exist, and the pause between.
const ATTEMPTS: u32 = 5;
const RETRY: Duration = Duration::from_secs(1);

/// The API of one node.
pub(super) struct Api {
    socket: PathBuf,
}

impl Api {
    /// The agent of a node: the cluster's API.
    pub(super) fn of_cluster(node: &NodeLayout) -> Self {
        Self { socket: node.mesh_socket() }
    }

    /// The engine of a node.
    pub(super) fn of_engine(node: &NodeLayout) -> Self {
        Self { socket: node.engine_socket() }
    }

    /// Reads an object.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, &Value::Null)
    }

    /// Creates an object of this kind and name; returns its id. On a busy machine etcd may not
    /// answer in time, and the object may exist nevertheless.
    fn create(&self, kind: &str, name: &str, body: &Value) -> Result<String> {
        let path = format!("/{kind}/create");
        let mut is_unsure = false;
        for _ in 0..ATTEMPTS {
            let (status, answer) = self.exchange("POST", &path, body)?;
            let made = match status {
                200..=299 => serde_json::from_str(&answer).with_context(|| path.clone())?,
                409 if is_unsure => self.get(&format!("/{kind}/{name}"))?,
                503 => {
                    is_unsure = true;
                    std::thread::sleep(RETRY);
                    continue;
                }
                _ => bail!("POST {path} for {name} was answered {status}: {answer}"),
            };
            let id = made["Id"].as_str().or(made["ID"].as_str());
            return Ok(id.with_context(|| format!("an id in the answer to {path}: {made}"))?.to_owned());
        }
        bail!("{name} could not be created: POST {path} was answered 503 {ATTEMPTS} times")
    }

    /// Removes an object.
    pub(super) fn delete(&self, path: &str) -> Result<()> {
        self.request("DELETE", path, &Value::Null).map(drop)
    }

    /// Creates an overlay network; returns its id.
    pub(super) fn create_network(&self, name: &str) -> Result<String> {
        self.create("networks", name, &json!({"Name": name, "Driver": "overlay"}))
    }

    /// Creates a service of the test server on these networks; returns its id.
    pub(super) fn create_service(
        &self,
        name: &str,
        networks: &[&str],
        replicas: u64,
        constraints: &[&str],
    ) -> Result<String> {
        let networks: Vec<Value> = networks.iter().map(|network| json!({"Target": network})).collect();
        let body = json!({
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": "whoami", "StopSignal": "SIGKILL"},
                "Placement": {"Constraints": constraints},
                "Networks": networks,
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
        });
        self.create("services", name, &body)
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let what = || format!("{method} {path} at {}", self.socket.display());
        let (status, answer) = self.exchange(method, path, body)?;
        ensure!((200..300).contains(&status), "{} was answered {status}: {answer}", what());
        if answer.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&answer).with_context(what) }
    }

    /// Sends a request; returns the status and the body of the answer.
    fn exchange(&self, method: &str, path: &str, body: &Value) -> Result<(u16, String)> {
        let what = || format!("{method} {path} at {}", self.socket.display());
        let sent = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = UnixStream::connect(&self.socket).with_context(what)?;
        stream.set_read_timeout(Some(DEADLINE)).with_context(what)?;
        // The answer to a request of HTTP/1.0 ends with the connection.
        let head = "Host: bench\r\nContent-Type: application/json";
        let length = sent.len();
        write!(stream, "{method} {path} HTTP/1.0\r\n{head}\r\nContent-Length: {length}\r\n\r\n{sent}")
            .with_context(what)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(what)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").with_context(what)?;
        let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(what)?, body.trim().to_owned()))
    }
}

/// Looks until `look` finds what it looks for.
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if begun.elapsed() > DEADLINE {
            bail!("waited {DEADLINE:?} in vain for {what}");
        }
        std::thread::sleep(PAUSE);
    }
}
