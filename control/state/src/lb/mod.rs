//! mesh's own labels, `mesh.lb.*`: what they may say and what it means.
//!
//! Invariants: pure; a label that mesh owns and can't read is an error that lists the good values; it is never ignored.

mod choice;
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
pub use value::go_duration;

use value::Given;

/// Labels with this prefix belong to mesh.
pub const LABEL_PREFIX: &str = "mesh.lb.";
/// The label that chooses the selection policy.
pub const POLICY_LABEL: &str = "mesh.lb.policy";
/// The label that chooses how packets travel.
pub const MODE_LABEL: &str = "mesh.lb.mode";
/// The label that makes nodes prefer their own tasks.
pub const PREFER_LOCAL_LABEL: &str = "mesh.lb.prefer-local";
/// The label that lets a new backend's weight rise slowly.
pub const SLOW_START_LABEL: &str = "mesh.lb.slow-start";
/// The label that lists whose connections are taken.
pub const ALLOW_LABEL: &str = "mesh.lb.allow";
/// The label that says when an idle TCP flow ends.
pub const IDLE_TIMEOUT_LABEL: &str = "mesh.lb.idle-timeout";
/// The label that says how long a task that is to stop waits for its live flows.
pub const DRAIN_TIMEOUT_LABEL: &str = "mesh.lb.drain-timeout";
/// The label that says where tasks tell their own load.
pub const LOAD_HTTP_LABEL: &str = "mesh.lb.load-http";
/// The label that weighs a service's tasks, or, on a node, the tasks there. With `.SLOT` after it, one task.
pub const WEIGHT_LABEL: &str = "mesh.lb.weight";

/// The labels of services, for messages.
const SERVICE_LABELS: &str = "mesh.lb.policy, mesh.lb.mode, mesh.lb.prefer-local, mesh.lb.slow-start, mesh.lb.allow, \
                              mesh.lb.idle-timeout, mesh.lb.drain-timeout, mesh.lb.load-http, mesh.lb.weight and mesh.lb.weight.SLOT";

/// Seconds of the longest slow start: an hour.
const SLOW_START_MAX_S: u32 = 3600;
/// Seconds of the longest idle timeout: a week.
const IDLE_TIMEOUT_MAX_S: u32 = 7 * 24 * 3600;
/// Seconds of the longest drain: an hour.
const DRAIN_TIMEOUT_MAX_S: u32 = 3600;
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
        "unknown label {key}: labels that begin with {LABEL_PREFIX} belong to mesh; those of a service are {SERVICE_LABELS}"
    )]
    Unknown {
        /// The label's key.
        key: String,
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
    /// Seconds that live flows of a task have to end before it is stopped; none: 30. `mesh.lb.drain-timeout`.
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
    /// # Errors
    /// The first label of mesh's that can't be read.
    pub fn from_labels(labels: &Labels) -> Result<Self, LabelError> {
        let mut settings = Self::default();
        for (key, value) in labels.iter().filter(|(key, _)| key.starts_with(LABEL_PREFIX)) {
            settings.read(Given { key, value })?;
        }
        Ok(settings)
    }

    fn read(&mut self, given: Given<'_>) -> Result<(), LabelError> {
        match given.key {
            POLICY_LABEL => self.policy = given.value.parse()?,
            MODE_LABEL => self.mode = given.value.parse()?,
            PREFER_LOCAL_LABEL => self.prefer_local = given.switch()?,
            SLOW_START_LABEL => self.slow_start_s = given.seconds(0, SLOW_START_MAX_S, "0s to 1h")?,
            ALLOW_LABEL => self.allow = given.networks()?,
            IDLE_TIMEOUT_LABEL => {
                let seconds = given.seconds(1, IDLE_TIMEOUT_MAX_S, "1s to 168h")?;
                self.idle_timeout_s = NonZeroU32::new(seconds);
            }
            DRAIN_TIMEOUT_LABEL => {
                self.drain_timeout_s = Some(given.seconds(0, DRAIN_TIMEOUT_MAX_S, "0s to 1h")?);
            }
            LOAD_HTTP_LABEL => self.load_http = Some(given.load_http()?),
            WEIGHT_LABEL => self.weight = Some(given.weight()?),
            key => {
                let slot = weighed_slot(key).ok_or_else(|| LabelError::Unknown { key: key.to_owned() })?;
                self.slot_weights.insert(slot, given.weight()?);
            }
        }
        Ok(())
    }

    /// How long live flows of a task have to end before it is stopped.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s.unwrap_or(DRAIN_TIMEOUT_DEFAULT_S).into())
    }

    /// The weight in effect of the task in `slot` on a node of weight `node`: its own, else its service's, times its node's.
    pub fn weight_of(&self, slot: &Slot, node: NonZeroU32) -> NonZeroU32 {
        let own = match slot {
            Slot::Number(number) => self.slot_weights.get(number).copied(),
            Slot::Node(_) => None,
        };
        let weight = own.or(self.weight).unwrap_or(NonZeroU32::MIN).saturating_mul(node);
        NonZeroU32::new(weight.get().min(EFFECTIVE_WEIGHT_MAX)).unwrap_or(NonZeroU32::MIN)
    }
}

/// The slot that a key of the form `mesh.lb.weight.SLOT` names; slots count from 1.
fn weighed_slot(key: &str) -> Option<u64> {
    let slot = key.strip_prefix(WEIGHT_LABEL)?.strip_prefix('.')?;
    value::whole_number(slot).filter(|slot| *slot != 0)
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
