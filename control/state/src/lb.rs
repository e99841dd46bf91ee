//! mesh's own labels, `mesh.lb.*`: what they may say and what it means.
//!
//! Invariant: a label that mesh owns and can't read is an error that lists the good values; it is never ignored.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::spec::Labels;

/// The label that chooses the selection policy.
pub const POLICY_LABEL: &str = "mesh.lb.policy";

/// Labels with this prefix belong to mesh.
pub const LABEL_PREFIX: &str = "mesh.lb.";

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
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| LabelError::Policy {
            value: text.to_owned(),
            good: Self::ALL.map(Self::as_str).join(", "),
        })
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

/// Why a label of mesh's was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LabelError {
    /// The policy's name is not known.
    #[error("invalid label {POLICY_LABEL}={value}: must be one of {good}")]
    Policy {
        /// What was given.
        value: String,
        /// What would be good.
        good: String,
    },
    /// mesh has no such label.
    #[error(
        "unknown label {key}: labels that begin with {LABEL_PREFIX} belong to mesh, which knows {POLICY_LABEL}"
    )]
    Unknown {
        /// The label's key.
        key: String,
    },
}

/// Where a task tells its own load: an HTTP GET answered by a number from 0 (idle) to 1 (saturated).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadHttp {
    /// Port in the task.
    pub port: u16,
    /// Path, with its leading slash.
    pub path: String,
}

/// What a service's labels say to the data plane.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LbSettings {
    /// How backends are selected: `mesh.lb.policy`.
    pub policy: Policy,
    /// How packets travel: `mesh.lb.mode`.
    pub mode: Mode,
    /// Whether a node prefers its own tasks while it has active ones: `mesh.lb.prefer-local`.
    pub prefer_local: bool,
    /// Seconds in which a new backend's weight rises to its full value; 0: at once. `mesh.lb.slow-start`.
    pub slow_start_s: u32,
    /// Networks whose clients may connect; empty: all. `mesh.lb.allow`.
    pub allow: Vec<IpNet>,
    /// Seconds after which an idle TCP flow is ended; none: two hours. `mesh.lb.idle-timeout`.
    pub idle_timeout_s: Option<NonZeroU32>,
    /// Where tasks tell their own load: `mesh.lb.load-http`.
    pub load_http: Option<LoadHttp>,
    /// Weight of each of the service's tasks: `mesh.lb.weight`.
    pub weight: Option<NonZeroU32>,
    /// Weight of single tasks by slot: `mesh.lb.weight.SLOT`.
    pub slot_weights: BTreeMap<u64, NonZeroU32>,
}

impl LbSettings {
    /// Reads a service's labels; absent ones take their defaults.
    ///
    /// # Errors
    /// The first label of mesh's that can't be read.
    pub fn from_labels(labels: &Labels) -> Result<Self, LabelError> {
        let mut settings = Self::default();
        for (key, value) in labels.iter().filter(|(key, _)| key.starts_with(LABEL_PREFIX)) {
            match key.as_str() {
                POLICY_LABEL => settings.policy = value.parse()?,
                _ => return Err(LabelError::Unknown { key: key.clone() }),
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_or_refused() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(LbSettings::from_labels(&labels(&[("a", "b")])), Ok(LbSettings::default()));
        assert_eq!(
            LbSettings::from_labels(&labels(&[(POLICY_LABEL, "least-connections")]))
                .map(|settings| settings.policy),
            Ok(Policy::LeastConnections)
        );
        let error = LbSettings::from_labels(&labels(&[(POLICY_LABEL, "fastest")])).unwrap_err().to_string();
        assert!(
            error.contains("fastest") && error.contains("round-robin, least-connections"),
            "expected the bad value and the good ones, saw: {error}"
        );
        assert!(
            LbSettings::from_labels(&labels(&[("mesh.lb.polcy", "x")])).is_err(),
            "a misspelt label was ignored"
        );
    }
}
