//! A request of a manager for logs of a node whose session another manager has.
//!
//! Invariant: bound to a lease of seconds: it is a message, not a record.

use serde::{Deserialize, Serialize};

use crate::ids::TaskId;

/// Logs that a manager asks a node for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAsk {
    /// The manager's name.
    pub manager: String,
    /// The address to which the node sends them: the manager's node service.
    pub address: String,
    /// All logs asked for so far.
    pub logs: Vec<AskedLog>,
    /// Include stdout.
    pub stdout: bool,
    /// Include stderr.
    pub stderr: bool,
    /// Include future lines.
    pub follow: bool,
}

/// One task's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedLog {
    /// The task whose log is asked for.
    pub task: TaskId,
    /// The moment to start at, in the engine's form; empty: the beginning.
    pub since: String,
    /// How many of the newest lines; negative: all.
    pub tail: i64,
}
