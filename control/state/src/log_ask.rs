//! What a manager asks of a node that another manager holds the stream of.
//!
//! Invariant: bound to a lease of seconds: it is a message, not a record.

use serde::{Deserialize, Serialize};

use crate::ids::TaskId;

/// Logs that a manager wants a node to send to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAsk {
    /// The manager's name.
    pub manager: String,
    /// Where the node sends them: the manager's node service.
    pub address: String,
    /// All logs that were asked for so far.
    pub logs: Vec<AskedLog>,
    /// What tasks write to stdout.
    pub stdout: bool,
    /// What tasks write to stderr.
    pub stderr: bool,
    /// What they will write, too.
    pub follow: bool,
}

/// One task's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedLog {
    /// The task.
    pub task: TaskId,
    /// From this moment on, as the engine takes it; empty: from the beginning.
    pub since: String,
    /// So many lines of the past; negative: all.
    pub tail: i64,
}
