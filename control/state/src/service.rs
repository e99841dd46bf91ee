//! A service as it is stored: its spec's versions and what the cluster made of it.

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::cluster::Sealed;
use crate::ids::ServiceId;
use crate::network::VirtualIp;
use crate::spec::{PortConfig, ServiceSpec};

/// A service. Written by the API (spec) and the updater (update status), always under a compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// What the user wants now.
    pub spec: ServiceSpec,
    /// What the user wanted before; a manual rollback returns to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_spec: Option<ServiceSpec>,
    /// Rises with each write of `spec`; tasks name the version that they were made from.
    pub spec_version: u64,
    /// The spec version before, with `previous_spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_spec_version: Option<u64>,
    /// Published ports with the automatic ones filled in.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    /// Its virtual IPs, one for each of its networks in mode `vip`, in the order of its spec. The
    /// leader gives them after the spec was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub virtual_ips: Vec<VirtualIp>,
    /// Credentials by which nodes pull its image, as its user gave them, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<Sealed>,
    /// The credentials before, with `previous_spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_registry_auth: Option<Sealed>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its spec was last written.
    pub updated_at: Timestamp,
    /// How a job stands; absent unless the service is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
    /// How the running or the last update stands; absent if nothing was ever dirty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_status: Option<UpdateStatus>,
}

impl Service {
    /// The name of the task in `slot` (or on `node` for a global service): what users and metrics
    /// call it.
    pub fn task_name(&self, slot: &crate::task::Slot) -> String {
        format!("{}.{slot}", self.spec.name)
    }
}

/// Which execution of a job is the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Rises with each write of the service's spec; tasks name the execution that they belong to.
    pub iteration: u64,
    /// When it began.
    pub last_execution: Timestamp,
}

/// Where an update stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Tasks are being replaced.
    Updating,
    /// Stopped by a failure.
    Paused,
    /// All slots are up to date.
    Completed,
    /// Tasks return to the previous spec.
    RollbackStarted,
    /// The rollback was stopped by a failure.
    RollbackPaused,
    /// All slots are back.
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

/// How an update stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// Its state.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Why it stands so, in Swarm's words.
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
