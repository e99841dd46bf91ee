//! The container of a task, in Docker's spelling.

use serde::{Deserialize, Serialize};

use super::service::null_as_default;
use super::{ConfigReference, Extra, Labels, Reference, SecretReference};

/// The container that the agent creates for a task. Fields that only the engine reads are in
/// `extra`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSpec {
    /// Image reference, with a digest if the client resolved it.
    pub image: String,
    /// Labels that the container gets, besides mesh's own.
    #[serde(skip_serializing_if = "Labels::is_empty", deserialize_with = "null_as_default")]
    pub labels: Labels,
    /// Replaces the image's entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// Replaces the image's command.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// Hostname inside the container.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// `KEY=value` pairs.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dir: String,
    /// User and group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Signal that asks the task to stop; empty means the image's, else SIGTERM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Nanoseconds between the stop signal and SIGKILL; `None` means 10 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_grace_period: Option<i64>,
    /// Health check; `None` means the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    /// Secrets, as files in the task.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub secrets: Vec<SecretReference>,
    /// Configs, as files in the task.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub configs: Vec<ConfigReference>,
    /// All other fields that the client sent (mounts, privileges, hosts …).
    #[serde(flatten)]
    pub extra: Extra,
}

impl ContainerSpec {
    /// Every reference to a secret or a config, in the user's order, secrets first.
    pub fn references(&self) -> impl Iterator<Item = Reference<'_>> {
        self.secrets.iter().map(Reference::from).chain(self.configs.iter().map(Reference::from))
    }
}

/// A health check as Docker spells it; durations in nanoseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthConfig {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", …]`; empty means the image's.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Intervals, retries and all other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}
