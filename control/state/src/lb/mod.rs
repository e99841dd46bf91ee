//! mesh's own labels, `mesh.lb.*`: what they may say and what it means.
//!
//! Invariants: pure; a label that mesh owns and can't read is an error that lists the good values;
//! it is never ignored.

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
/// Seconds that live flows have without a label.
const DRAIN_TIMEOUT_DEFAULT_S: u32 = 30;
/// The heaviest weight that a backend can have in effect.
pub const EFFECTIVE_WEIGHT_MAX: u32 = 65_535;

/// Why a label of mesh's was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LabelError {
    /// The value can't be one of this label's.
    #[error("invalid label {key}={value}: must be {good}")]
    Value {
        /// The label's key.
        key: String,
        /// What was given.
        value: String,
        /// What would be good.
        good: String,
    },
    /// A network with an address in it: it may mean the one or the other.
    #[error("invalid label {key}: {given} has host bits set: the network is {network}")]
    HostBits {
        /// The label's key.
        key: String,
        /// What was given.
        given: String,
        /// The network that it lies in.
        network: IpNet,
    },
    /// Services have no such label.
    #[error(
        "unknown label {key}: labels that begin with {LABEL_PREFIX} belong to mesh; those of a service are {good}"
    )]
    Unknown {
        /// The label's key.
        key: String,
        /// All keys that services have.
        good: String,
    },
    /// Nodes have no such label.
    #[error(
        "unknown label {key}: labels that begin with {LABEL_PREFIX} belong to mesh; a node has {WEIGHT_LABEL} only"
    )]
    UnknownOnNode {
        /// The label's key.
        key: String,
    },
}

/// Where a task tells its own load: an HTTP GET answered by a number from 0 (idle) to 1
/// (saturated).
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
    /// Seconds in which a new backend's weight rises to its full value; 0: at once.
    /// `mesh.lb.slow-start`.
    pub slow_start_s: u32,
    /// Networks whose clients may connect; empty: all. `mesh.lb.allow`.
    pub allow: Vec<IpNet>,
    /// Seconds after which an idle TCP flow is ended; none: two hours. `mesh.lb.idle-timeout`.
    pub idle_timeout_s: Option<NonZeroU32>,
    /// Seconds that live flows of a task have to end before it is stopped; none: 30.
    /// `mesh.lb.drain-timeout`.
    pub drain_timeout_s: Option<u32>,
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
    /// The first label of mesh's that can't be read.
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

    /// The weight in effect of the task in `slot` on a node of weight `node`: its own, else its
    /// service's, times its node's.
    pub fn weight_of(&self, slot: &Slot, node: NonZeroU32) -> NonZeroU32 {
        let own = match slot {
            Slot::Number(number) => self.slot_weights.get(number).copied(),
            Slot::Node(_) => None,
        };
        let weight = own.or(self.weight).unwrap_or(NonZeroU32::MIN).saturating_mul(node);
        NonZeroU32::new(weight.get().min(EFFECTIVE_WEIGHT_MAX)).unwrap_or(NonZeroU32::MIN)
    }
}

/// Reads a node's labels: the weight that tasks on it are given, 1 without a label.
///
/// # Errors
/// The first label of mesh's that can't be read.
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
