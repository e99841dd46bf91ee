//! What is wrong with the cluster, and why a slot of a service has no running task.
//!
//! Purpose: answer what operators ask when something does not work, from the same snapshot that the
//! planners decide on: [`problems`] lists what needs a person, each with its cause and what to do
//! next; [`why()`] tells the story of each slot of a service.
//!
//! Invariants: pure; a problem names one object; the worst come first; nothing here shows a secret,
//! an environment or a command line.
//!
//! Left to others: what a node knows about itself (`mesh check`), and how problems are shown.

mod cluster;
mod nodes;
mod places;
mod refused;
mod services;
mod why;

use mesh_state::Timestamp;
use serde::Serialize;

use crate::feed::snapshot::ClusterSnapshot;

pub use why::{Why, why};

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work: a service lacks tasks, a node is down.
    Error,
    /// Everything works, but something is wrong or soon will be.
    Warning,
}

/// The kind of object that a problem is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The managers and their store.
    Cluster,
    /// One of the nodes: its liveness, its clock, its host's ports.
    Node,
    /// One of the services: its tasks, its update.
    Service,
}

/// Something that needs a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The kind of the object.
    pub kind: Kind,
    /// The object's id; empty for the cluster.
    #[serde(rename = "ID")]
    pub id: String,
    /// The object's name; empty for the cluster.
    pub name: String,
    /// What is wrong, in one line.
    pub cause: String,
    /// Since when; `None` if nobody recorded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The next command, or what else to do.
    pub cure: String,
}

/// Everything that is wrong at `now`: errors before warnings, the cluster before nodes before
/// services, then by name. If the manager that is asked is not `is_connected` to etcd, the snapshot
/// may be old, which is a problem too.
pub fn problems(now: Timestamp, snapshot: &ClusterSnapshot, is_connected: bool) -> Vec<Problem> {
    let mut found = cluster::problems(snapshot, is_connected);
    found.extend(nodes::problems(snapshot));
    found.extend(services::problems(now, snapshot));
    found.sort_by(|one, other| {
        (one.severity, one.kind, &one.name, &one.cause).cmp(&(
            other.severity,
            other.kind,
            &other.name,
            &other.cause,
        ))
    });
    found
}

/// How many tasks are wanted at `now` and don't run, those that are about to start too.
pub fn unfilled(now: Timestamp, snapshot: &ClusterSnapshot) -> usize {
    services::unfilled(now, snapshot)
}

/// `1 node`, `2 nodes`.
fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
