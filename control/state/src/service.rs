//! A service as it is stored: the versions of its spec, and its state.

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::cluster::Sealed;
use crate::ids::ServiceId;
use crate::network::VirtualIp;
use crate::spec::{PortConfig, ServiceSpec};

/// A service. Written by the API (spec) and the updater (update status), always under a compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// The service's id, which stays when the spec changes.
    pub id: ServiceId,
    /// The user's present spec.
    pub spec: ServiceSpec,
    /// The user's previous spec; a manual rollback returns to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_spec: Option<ServiceSpec>,
    /// Rises with each write of `spec`; tasks carry the version that they were made from.
    pub spec_version: u64,
    /// The number of the spec version that a rollback goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_spec_version: Option<u64>,
    /// Published ports with the automatic ones filled in.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    /// Its virtual IPs, one for each of its networks in mode `vip`, in the order of its spec. The
    /// leader assigns them after the spec was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub virtual_ips: Vec<VirtualIp>,
    /// The user's credentials by which nodes pull its image, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<Sealed>,
    /// The credentials of `previous_spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_registry_auth: Option<Sealed>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its spec was last written.
    pub updated_at: Timestamp,
    /// The state of a job; `None` unless the service is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
    /// The state of the current or the last update; `None` if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_status: Option<UpdateStatus>,
}

impl Service {
    /// The name of the task in `slot` (or on `node` for a global service), as users and metrics
    /// have it.
    pub fn task_name(&self, slot: &crate::task::Slot) -> String {
        format!("{}.{slot}", self.spec.name)
    }
}

/// The present execution of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Rises with each write of the service's spec; tasks carry the number of their execution.
    pub iteration: u64,
    /// When it began.
    pub last_execution: Timestamp,
}

/// Where an update or rollback stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Tasks are being replaced.
    Updating,
    /// A failure stopped it.
    Paused,
    /// All slots are up to date.
    Completed,
    /// Tasks return to the previous spec.
    RollbackStarted,
    /// A failure stopped the rollback.
    RollbackPaused,
    /// All slots have the previous spec.
    RollbackCompleted,
}

impl UpdateState {
    /// Whether tasks are still being replaced.
    pub fn goes_on(self) -> bool {
        matches!(self, Self::Updating | Self::RollbackStarted)
    }

    /// Docker's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        }
    }
}

/// How an update goes, as `docker service inspect` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// Whether the update goes on, waits or is over.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// The reason, in Swarm's words.
    pub message: String,
    /// When the last batch of slots was begun: the delay counts from its completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_at: Option<Timestamp>,
}

impl UpdateStatus {
    /// An update that begins at `now`.
    pub fn begun(now: Timestamp) -> Self {
        Self {
            state: UpdateState::Updating,
            started_at: now,
            completed_at: None,
            message: "update in progress".to_owned(),
            batch_at: None,
        }
    }
}
