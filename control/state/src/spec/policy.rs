//! Resources, placement, restart and update policies, with Swarm's defaults as methods.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::service::null_as_default;
use super::{Extra, GenericResource};

/// Limits that the engine enforces and reservations that the scheduler honours.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    /// Upper bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceLimits>,
    /// Resources that must be free on a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservations: Option<ResourceReservations>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Upper bounds of a task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResourceLimits {
    /// Billionths of a CPU; `None` or 0 is unlimited.
    #[serde(rename = "NanoCPUs", skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<i64>,
    /// Bytes; `None` or 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    /// Processes; `None` or 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Resources that must be free on a task's node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResourceReservations {
    /// Billionths of a CPU.
    #[serde(rename = "NanoCPUs", skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<i64>,
    /// Memory that the node must have left, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    /// Resources that operators define.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub generic_resources: Vec<GenericResource>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where tasks may run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Placement {
    /// `key==value` or `key!=value`; all of them must hold.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub constraints: Vec<String>,
    /// Spread preferences, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub preferences: Vec<PlacementPreference>,
    /// The most tasks of the service per node; 0 is unlimited.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_replicas: u64,
    /// Platforms and all other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One placement preference.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlacementPreference {
    /// Spread evenly over the values of a label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<SpreadOver>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The label to spread over, such as `node.labels.zone`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SpreadOver {
    /// The label's full key.
    pub spread_descriptor: String,
}

/// After which ends a task is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// Never restart a task, however it ends.
    None,
    /// After a failure.
    OnFailure,
    /// After every end.
    #[default]
    Any,
}

/// Restart policy of a service's tasks.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// The condition; `None` means any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<RestartCondition>,
    /// Nanoseconds before the replacement starts; `None` means 5 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<u64>,
    /// Attempts within the window; `None` or 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u64>,
    /// Nanoseconds over which attempts count; `None` or 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

impl RestartPolicy {
    /// Swarm's default restart delay.
    pub const DEFAULT_DELAY: Duration = Duration::from_secs(5);

    /// The delay, with Swarm's default.
    pub fn delay(&self) -> Duration {
        self.delay.map_or(Self::DEFAULT_DELAY, Duration::from_nanos)
    }

    /// The condition, with Swarm's default.
    pub fn condition(&self) -> RestartCondition {
        self.condition.unwrap_or_default()
    }
}

/// The reaction to failures of updated tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    /// Stop and wait for the user.
    #[default]
    Pause,
    /// Continue the update.
    Continue,
    /// Return to the previous spec.
    Rollback,
}

/// Whether the old task stops first or the new one starts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The old one stops, then the new one starts.
    #[default]
    StopFirst,
    /// The new one starts, then the old one stops.
    StartFirst,
}

/// The settings of an update or a rollback.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateConfig {
    /// Slots at a time; 0 is all at once.
    pub parallelism: u64,
    /// Nanoseconds between batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<i64>,
    /// The reaction to failures; `None` means pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_action: Option<FailureAction>,
    /// Nanoseconds after its start within which a task's death fails the update; `None` means 5 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<i64>,
    /// The share of slots that may fail.
    pub max_failure_ratio: f32,
    /// The order; `None` means stop-first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<UpdateOrder>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

impl UpdateConfig {
    /// The settings without a block: one slot at a time, pause on failure, monitor 5 s, stop-first.
    pub fn swarm_default() -> Self {
        Self { parallelism: 1, ..Self::default() }
    }
}
