//! The Docker API of one manager, for what must be seen at once or with its status code.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::client::http::Response;
use crate::client::unix;
use crate::cluster::Cluster;

/// Swarm's words for managers without a quorum.
pub(in crate::soak) const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. \
                                             Make sure more than half of the managers are online.";

/// The deadline of each call.
const DEADLINE: Duration = Duration::from_secs(10);
/// The pause between two calls.
const PAUSE: Duration = Duration::from_millis(50);

/// The path of a node's socket.
pub(in crate::soak) fn socket(cluster: &Cluster, node: &str) -> Result<PathBuf> {
    let host = &cluster.node(node)?.mesh_host;
    Ok(PathBuf::from(host.strip_prefix("unix://").context("a Unix socket")?))
}

/// One manager's API.
#[derive(Debug, Clone)]
pub(in crate::soak) struct Api {
    socket: PathBuf,
}

impl Api {
    /// The API at a node's socket.
    pub(in crate::soak) fn of(cluster: &Cluster, node: &str) -> Result<Self> {
        Ok(Self::at(socket(cluster, node)?))
    }

    /// The API at a socket.
    pub(in crate::soak) fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn get(&self, path: &str) -> Result<Value> {
        let answer = unix::get(&self.socket, path, DEADLINE)?;
        ensure!(answer.status == 200, "{path} answered {}: {}", answer.status, answer.text().trim());
        serde_json::from_slice(&answer.body).with_context(|| format!("parse the answer to {path}"))
    }

    /// The hostname of the node that leads, if one does.
    pub(in crate::soak) fn leader(&self) -> Result<Option<String>> {
        let nodes = self.get("/v1.41/nodes")?;
        let nodes = nodes.as_array().context("no list of nodes")?;
        let leads = nodes.iter().find(|node| node["ManagerStatus"]["Leader"] == true);
        Ok(leads.and_then(|node| node["Description"]["Hostname"].as_str()).map(str::to_owned))
    }

    /// Asks for a service of one task, and returns the answer, whatever it is.
    pub(in crate::soak) fn create(&self, name: &str) -> Result<Response> {
        let spec = json!({
            "Name": name,
            "TaskTemplate": {"ContainerSpec": {"Image": "whoami"}},
            "Mode": {"Replicated": {"Replicas": 1}},
        });
        unix::post(&self.socket, "/v1.41/services/create", &spec, DEADLINE)
    }

    /// Asks for a service until a manager that has no leader yet takes it; returns how often it was
    /// refused before.
    ///
    /// # Errors
    /// A refusal is not in Swarm's words, or nothing is taken within `within`.
    pub(in crate::soak) fn create_until_taken(&self, name: &str, within: Duration) -> Result<usize> {
        let (begun, mut refused) = (Instant::now(), 0);
        loop {
            let answer = self.create(name)?;
            match answer.status {
                201 => return Ok(refused),
                // A write whose answer was lost may have been made.
                409 if refused > 0 => return Ok(refused),
                _ => is_without_leader(&answer)?,
            }
            refused += 1;
            if begun.elapsed() > within {
                bail!("no write was taken within {within:?}; the last answer: {}", answer.text().trim());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether a task of the service runs.
    pub(in crate::soak) fn runs(&self, service: &str) -> Result<bool> {
        let filters = format!("%7B%22service%22%3A%5B%22{service}%22%5D%7D");
        let tasks = self.get(&format!("/v1.41/tasks?filters={filters}"))?;
        Ok(tasks
            .as_array()
            .context("no list of tasks")?
            .iter()
            .any(|task| task["Status"]["State"] == "running"))
    }

    /// Removes a service.
    pub(in crate::soak) fn remove(&self, service: &str) -> Result<()> {
        let answer = unix::delete(&self.socket, &format!("/v1.41/services/{service}"), DEADLINE)?;
        ensure!(answer.status == 200, "removing {service}: {}", answer.text().trim());
        Ok(())
    }
}

/// Checks that an answer is Swarm's to a write without a leader.
///
/// # Errors
/// It is another one.
pub(in crate::soak) fn is_without_leader(answer: &Response) -> Result<()> {
    let said = answer.text();
    ensure!(
        answer.status == 503 && said.contains(NO_LEADER),
        "expected 503 with `{NO_LEADER}`, saw {}: {}",
        answer.status,
        said.trim()
    );
    Ok(())
}
