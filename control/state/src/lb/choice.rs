//! What a service chooses out of a closed list: its selection policy and its forwarding mode.

use serde::{Deserialize, Serialize};

use super::{LabelError, MODE_LABEL, POLICY_LABEL};

/// How the mesh selects a backend for a new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Each backend in turn.
    #[default]
    RoundRobin,
    /// One at random.
    Random,
    /// The backend with fewer live flows, of two chosen at random.
    LeastConnections,
    /// The backend with the lower load, as its node measures it, of two chosen at random.
    LeastLoad,
    /// The backend of the client's address, the same on every node.
    SourceHash,
}

impl Policy {
    /// All policies, in the order in which messages list them.
    pub const ALL: [Self; 5] =
        [Self::RoundRobin, Self::Random, Self::LeastConnections, Self::LeastLoad, Self::SourceHash];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastConnections => "least-connections",
            Self::LeastLoad => "least-load",
            Self::SourceHash => "source-hash",
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Policy {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| one_of(POLICY_LABEL, text, &Self::ALL.map(Self::as_str)))
    }
}

/// How a service's packets get to tasks on other nodes and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Through the tunnel, both ways.
    #[default]
    Tunnel,
    /// Through the tunnel to the task; its node answers the client directly.
    Dsr,
    /// By the nodes' proxies, with the PROXY protocol (version 2) towards the task.
    Proxy,
}

impl Mode {
    /// All modes, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Tunnel, Self::Dsr, Self::Proxy];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Dsr => "dsr",
            Self::Proxy => "proxy",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Mode {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| one_of(MODE_LABEL, text, &Self::ALL.map(Self::as_str)))
    }
}

/// The error for a value that is none of `good`.
pub(super) fn one_of(key: &str, value: &str, good: &[&str]) -> LabelError {
    LabelError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        good: format!("one of {}", good.join(", ")),
    }
}
