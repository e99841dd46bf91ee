//! mesh's own labels, `mesh.lb.*`: their values and their meaning.
//!
//! Invariants: pure; a label of mesh that can't be parsed is an error that lists the allowed
//! values; it is never ignored.

mod choice;
mod labels;
mod value;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::spec::Labels;
use crate::task::Slot;

pub use choice::{Mode, Policy};
pub use labels::{
    ALLOW_LABEL, DRAIN_TIMEOUT_LABEL, IDLE_TIMEOUT_LABEL, LOAD_HTTP_LABEL, MODE_LABEL, POLICY_LABEL,
    PREFER_LOCAL_LABEL, SERVICE_LABELS, SLOW_START_LABEL, ServiceLabel, WEIGHT_LABEL, markdown,
};
pub use value::go_duration;

use value::Given;

/// Labels with this prefix belong to mesh.
pub const LABEL_PREFIX: &str = "mesh.lb.";
/// The default time that live flows have to end, seconds.
const DRAIN_TIMEOUT_DEFAULT_S: u32 = 30;
/// The heaviest effective weight of a backend.
pub const EFFECTIVE_WEIGHT_MAX: u32 = 65_535;

/// Why a label of mesh was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LabelError {
    /// The value is not allowed for this label.
    #[error("invalid label {key}={value}: must be {good}")]
    Value {
        /// The key of the label that is wrong.
        key: String,
        /// The given value.
        value: String,
        /// The allowed values.
        good: String,
    },
    /// A network with host bits set: it may mean the network or the address.
    #[error("invalid label {key}: {given} has host bits set: the network is {network}")]
    HostBits {
        /// The key of the label that is wrong.
        key: String,
        /// The given value.
        given: String,
        /// The network that contains it.
        network: IpNet,
    },
    /// Services have no such label.
    #[error(
        "unknown label {key}: labels that begin with {LABEL_PREFIX} belong to mesh; those of a service are {good}"
    )]
    Unknown {
        /// The key of the label that is wrong.
        key: String,
        /// All keys that services have.
        good: String,
    },
    /// Nodes have no such label.
    #[error(
        "unknown label {key}: labels that begin with {LABEL_PREFIX} belong to mesh; a node has {WEIGHT_LABEL} only"
    )]
    UnknownOnNode {
        /// The key of the label that is wrong.
        key: String,
    },
}

/// The HTTP endpoint at which a task reports its own load: a number from 0 (idle) to 1 (saturated).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadHttp {
    /// Port in the task.
    pub port: u16,
    /// Path, with its leading slash.
    pub path: String,
}

/// A service's settings for the data plane, from its labels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LbSettings {
    /// How backends are selected: `mesh.lb.policy`.
    pub policy: Policy,
    /// How packets travel: `mesh.lb.mode`.
    pub mode: Mode,
    /// Whether a node prefers its own tasks while it has active ones: `mesh.lb.prefer-local`.
    pub prefer_local: bool,
    /// Seconds in which a new backend's weight rises to its full value; 0: at once.
    /// `mesh.lb.slow-start`.
    pub slow_start_s: u32,
    /// Networks whose clients may connect; empty: all. `mesh.lb.allow`.
    pub allow: Vec<IpNet>,
    /// Seconds after which an idle TCP flow ends; `None`: two hours. `mesh.lb.idle-timeout`.
    pub idle_timeout_s: Option<NonZeroU32>,
    /// Seconds that live flows of a task have to end before it is stopped; `None`: 30.
    /// `mesh.lb.drain-timeout`.
    pub drain_timeout_s: Option<u32>,
    /// The endpoint at which tasks report their own load: `mesh.lb.load-http`.
    pub load_http: Option<LoadHttp>,
    /// The weight of each of the service's tasks: `mesh.lb.weight`.
    pub weight: Option<NonZeroU32>,
    /// The weight of single tasks by slot: `mesh.lb.weight.SLOT`.
    pub slot_weights: BTreeMap<u64, NonZeroU32>,
}

impl LbSettings {
    /// Parses a service's labels; missing ones get their defaults.
    ///
    /// ```
    /// use mesh_state::lb::{LbSettings, Policy};
    /// use mesh_state::spec::Labels;
    ///
    /// let labels = Labels::from([("mesh.lb.policy".to_owned(), "least-load".to_owned())]);
    /// assert_eq!(LbSettings::from_labels(&labels)?.policy, Policy::LeastLoad);
    ///
    /// let wrong = Labels::from([("mesh.lb.policy".to_owned(), "fastest".to_owned())]);
    /// assert!(LbSettings::from_labels(&wrong).is_err(), "an unknown policy is never ignored");
    /// # Ok::<(), mesh_state::lb::LabelError>(())
    /// ```
    ///
    /// # Errors
    /// The first label of mesh that can't be parsed.
    pub fn from_labels(labels: &Labels) -> Result<Self, LabelError> {
        let mut settings = Self::default();
        for (key, value) in labels.iter().filter(|(key, _)| key.starts_with(LABEL_PREFIX)) {
            settings.read(Given { key, value })?;
        }
        Ok(settings)
    }

    /// How long live flows of a task have to end before it is stopped.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s.unwrap_or(DRAIN_TIMEOUT_DEFAULT_S).into())
    }

    /// The effective weight of the task in `slot` on a node of weight `node`: the slot's, else the
    /// service's, times the node's.
    pub fn weight_of(&self, slot: &Slot, node: NonZeroU32) -> NonZeroU32 {
        let own = match slot {
            Slot::Number(number) => self.slot_weights.get(number).copied(),
            Slot::Node(_) => None,
        };
        let weight = own.or(self.weight).unwrap_or(NonZeroU32::MIN).saturating_mul(node);
        NonZeroU32::new(weight.get().min(EFFECTIVE_WEIGHT_MAX)).unwrap_or(NonZeroU32::MIN)
    }
}

/// Parses a node's labels: the factor for the weights of tasks on it, 1 without a label.
///
/// # Errors
/// The first label of mesh that can't be parsed.
pub fn node_weight(labels: &Labels) -> Result<NonZeroU32, LabelError> {
    let mut weight = NonZeroU32::MIN;
    for (key, value) in labels.iter().filter(|(key, _)| key.starts_with(LABEL_PREFIX)) {
        match key.as_str() {
            WEIGHT_LABEL => weight = Given { key, value }.weight()?,
            _ => return Err(LabelError::UnknownOnNode { key: key.clone() }),
        }
    }
    Ok(weight)
}

#[cfg(test)]
mod tests;
