//! The server's identity.

use std::fs;

/// What every answer says about the server.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The task's name, or else the host name, which is the start of the container's id by default.
    pub(crate) task: String,
    /// The node's name, if it is known.
    pub(crate) node: Option<String>,
    /// The host name.
    pub(crate) hostname: String,
}

impl Identity {
    /// An identity; a missing task name defaults to the host name.
    pub(crate) fn new(task: Option<String>, node: Option<String>) -> Self {
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let given = |value: Option<String>| value.filter(|text| !text.is_empty());
        Self { task: given(task).unwrap_or_else(|| hostname.clone()), node: given(node), hostname }
    }
}
