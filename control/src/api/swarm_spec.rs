//! The settings of the cluster that an operator may change. Pure.
//!
//! Invariant: a client sends back the whole spec that it read, so every unchanged value is
//! accepted, also of settings that mesh doesn't support.

use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::ca::RootCa;
use mesh_state::cluster::{Cluster, Sealed};
use mesh_state::spec::Labels;
use mesh_state::store::{Compare, Op};
use mesh_state::{codec, keys};
use serde::Deserialize;
use serde_json::Value;

use super::access::Transaction;
use super::dto::RAFT;
use super::error::ApiError;
use super::swarm_ca::{self, CaConfig};
use crate::feed::snapshot::Versioned;

/// The only name that Swarm lets a cluster have.
const NAME: &str = "default";
/// The shortest heartbeat period: nodes send messages twice a second and are silent after two
/// seconds, so a shorter one couldn't be kept.
const HEARTBEAT_PERIOD_MIN_NS: u64 = 1_000_000_000;
/// The longest validity of a node's certificate: ten years, half of the CA's.
const CERTIFICATE_LIFE_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// Docker's `Spec` of a swarm.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct SwarmSpec {
    name: String,
    labels: Option<Labels>,
    orchestration: Orchestration,
    raft: Raft,
    dispatcher: Dispatcher,
    #[serde(rename = "CAConfig")]
    pub(super) ca_config: CaConfig,
    task_defaults: TaskDefaults,
    encryption_config: EncryptionConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Orchestration {
    task_history_retention_limit: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Raft {
    snapshot_interval: u64,
    keep_old_snapshots: u64,
    log_entries_for_slow_followers: u64,
    election_tick: u64,
    heartbeat_tick: u64,
}

impl Raft {
    /// Whether it has other raft settings than those that are shown. Zero leaves a setting as it
    /// is.
    fn differs(&self) -> bool {
        [
            (self.snapshot_interval, RAFT.snapshot_interval),
            (self.keep_old_snapshots, RAFT.keep_old_snapshots),
            (self.log_entries_for_slow_followers, RAFT.log_entries_for_slow_followers),
            (self.election_tick, RAFT.election_tick),
            (self.heartbeat_tick, RAFT.heartbeat_tick),
        ]
        .into_iter()
        .any(|(asked, shown)| asked != 0 && asked != shown)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Dispatcher {
    heartbeat_period: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct TaskDefaults {
    log_driver: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct EncryptionConfig {
    auto_lock_managers: Option<bool>,
}

/// Fresh secrets, sealed, and the limits of this manager.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rotation {
    /// The shortest life that nodes' certificates may get.
    pub(crate) certificate_life_min: Duration,
    /// The worker's secret, if it is rotated.
    pub(crate) worker: Option<Sealed>,
    /// The manager's secret, if it is rotated.
    pub(crate) manager: Option<Sealed>,
    /// The key that locks managers, if it is new ([`needs_unlock_key`]).
    pub(crate) unlock: Option<Sealed>,
    /// The CA that the cluster is to have, with its sealed key.
    pub(crate) ca: Option<(RootCa, Sealed)>,
}

/// Whether an update needs a new key that locks managers: autolock begins, or its key is rotated.
/// Without autolock there is nothing to rotate, as in Swarm.
pub(crate) fn needs_unlock_key(spec: &SwarmSpec, current: &Cluster, rotates: bool) -> bool {
    let locks = spec.encryption_config.auto_lock_managers.unwrap_or(current.unlock_key.is_some());
    locks && (rotates || current.unlock_key.is_none())
}

/// The cluster's record after an update by a client that read it at `version`.
pub(crate) fn change(
    now: Timestamp,
    current: &Versioned<Cluster>,
    version: i64,
    spec: &SwarmSpec,
    rotation: Rotation,
) -> Result<Transaction, ApiError> {
    if version != current.mod_revision {
        return Err(ApiError::OutOfSequence);
    }
    refuse_what_is_not_served(spec)?;
    let mut cluster = current.value.clone();
    if let Some(limit) = spec.orchestration.task_history_retention_limit {
        cluster.task_history_limit = u64::try_from(limit).map_err(|_| {
            ApiError::BadRequest(format!("the task history retention limit can't be {limit}: use 0 or more"))
        })?;
    }
    // A setting that is missing stays as it is, as in Swarm.
    if let Some(period) = heartbeat_period(spec.dispatcher.heartbeat_period)? {
        cluster.heartbeat_period_ns = period;
    }
    if let Some(labels) = &spec.labels {
        cluster.labels.clone_from(labels);
    }
    if let Some(expiry) = certificate_expiry(spec.ca_config.node_cert_expiry, rotation.certificate_life_min)?
    {
        cluster.node_cert_expiry_ns = expiry;
    }
    if let Some(ca) = rotation.ca {
        cluster = swarm_ca::rotate(&cluster, ca, now)?;
    }
    cluster.force_rotate =
        spec.ca_config.force_rotate.filter(|number| *number > 0).unwrap_or(cluster.force_rotate);
    cluster.worker_token = rotation.worker.unwrap_or(cluster.worker_token);
    cluster.manager_token = rotation.manager.unwrap_or(cluster.manager_token);
    cluster.unlock_key = match spec.encryption_config.auto_lock_managers {
        Some(false) => None,
        Some(true) | None => rotation.unlock.or(cluster.unlock_key),
    };
    cluster.updated_at = Some(now);
    Ok(Transaction {
        compares: vec![Compare::ModRevision(keys::CLUSTER.to_owned(), version)],
        ops: vec![Op::put(keys::CLUSTER, codec::encode(&cluster)?)],
    })
}

fn heartbeat_period(asked: Option<i64>) -> Result<Option<u64>, ApiError> {
    let Ok(period) = u64::try_from(asked.unwrap_or_default()) else {
        let message = "heartbeat time period cannot be a negative duration";
        return Err(ApiError::Invalid(message.to_owned()));
    };
    match period {
        0 => Ok(None),
        HEARTBEAT_PERIOD_MIN_NS.. => Ok(Some(period)),
        _ => Err(ApiError::BadRequest("the heartbeat period must be 1s or longer".to_owned())),
    }
}

/// The validity of nodes' certificates, at least `least`; each node gets it when it renews.
fn certificate_expiry(asked: Option<i64>, least: Duration) -> Result<Option<u64>, ApiError> {
    let asked = u64::try_from(asked.unwrap_or_default()).map(Duration::from_nanos);
    match asked {
        Ok(Duration::ZERO) => Ok(None),
        Ok(longer) if longer > CERTIFICATE_LIFE_MAX => {
            Err(ApiError::BadRequest("a node's certificate can be good for 87600h0m0s at most".to_owned()))
        }
        Ok(life) if life >= least => Ok(u64::try_from(life.as_nanos()).ok()),
        _ => Err(ApiError::Invalid(format!("minimum certificate expiry time is: {}", go_duration(least)))),
    }
}

/// A duration of whole minutes, as Go writes it: `1h0m0s`.
fn go_duration(duration: Duration) -> String {
    let minutes = duration.as_secs() / 60;
    match minutes / 60 {
        0 => format!("{minutes}m0s"),
        hours => format!("{hours}h{}m0s", minutes % 60),
    }
}

fn refuse_what_is_not_served(spec: &SwarmSpec) -> Result<(), ApiError> {
    if !matches!(spec.name.as_str(), "" | NAME) {
        return Err(ApiError::BadRequest(format!("swarm spec must be named \"{NAME}\"")));
    }
    let ca = &spec.ca_config;
    let refusals = [
        (
            spec.raft.differs(),
            "mesh keeps no raft log of its own: set --snapshot-count and --max-snapshots of etcd",
        ),
        (
            ca.external_cas.as_ref().is_some_and(|cas| !cas.is_empty()),
            "external CAs are not supported by mesh yet: the cluster's own signs every certificate",
        ),
        (
            spec.task_defaults.log_driver.as_ref().is_some_and(|driver| !driver.is_null()),
            "a default log driver is not supported by mesh yet: set it with --log-driver, or in each engine's daemon.json",
        ),
    ];
    match refusals.iter().find(|(asked, _)| *asked) {
        Some((_, message)) => Err(ApiError::NotImplemented((*message).to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ca::MEMBER_LIFE_MIN;
    use crate::fixtures::World;

    fn changed(world: &World, spec: &Value, rotation: Rotation) -> Result<Cluster, String> {
        let current = world.snapshot.cluster.as_ref().unwrap();
        let spec: SwarmSpec = serde_json::from_value(spec.clone()).unwrap();
        let rotation = Rotation { certificate_life_min: MEMBER_LIFE_MIN, ..rotation };
        let written = change(world.now, current, current.mod_revision, &spec, rotation);
        match written.map_err(|error| error.to_string())?.ops.remove(0) {
            Op::Put { value, .. } => Ok(codec::decode(&value).unwrap()),
            Op::Delete { key } => panic!("{key} was deleted"),
        }
    }

    #[test]
    fn history_heartbeat_labels_and_tokens_change() {
        let world = World::with_nodes([]);
        let spec = json!({
            "Name": "default", "Labels": {"site": "a"},
            "Orchestration": {"TaskHistoryRetentionLimit": 2}, "Dispatcher": {"HeartbeatPeriod": 10_000_000_000_u64},
            "CAConfig": {"NodeCertExpiry": 7_200_000_000_000_u64}, "Raft": {"SnapshotInterval": 10_000, "ElectionTick": 10, "HeartbeatTick": 0},
        });
        let fresh = Sealed("fresh".to_owned());
        let rotation = Rotation { worker: Some(fresh.clone()), ..Rotation::default() };
        let cluster = changed(&world, &spec, rotation).unwrap();
        assert_eq!((cluster.task_history_limit, cluster.heartbeat_period_ns), (2, 10_000_000_000));
        assert_eq!(cluster.node_cert_expiry_ns, 7_200_000_000_000, "two hours");
        assert_eq!(cluster.labels["site"], "a");
        let before = &world.snapshot.cluster.as_ref().unwrap().value;
        assert_eq!((&cluster.worker_token, &cluster.manager_token), (&fresh, &before.manager_token));
    }

    #[test]
    fn missing_settings_stay_as_they_are() {
        let mut world = World::with_nodes([]);
        let mut before = world.snapshot.cluster.as_ref().unwrap().value.clone();
        before.heartbeat_period_ns = 7_000_000_000;
        before.labels.insert("site".to_owned(), "a".to_owned());
        world.put_cluster(&before);
        let kept = changed(&world, &json!({}), Rotation::default()).unwrap();
        assert_eq!((kept.task_history_limit, kept.heartbeat_period_ns), (5, 7_000_000_000));
        assert_eq!(kept.labels, before.labels);
        let cleared = changed(&world, &json!({"Labels": {}}), Rotation::default()).unwrap();
        assert!(cleared.labels.is_empty(), "left: {:?}", cleared.labels);
        assert_eq!(kept.node_cert_expiry_ns, before.node_cert_expiry_ns);
    }

    #[test]
    fn unsupported_changes_are_refused_by_name() {
        let world = World::with_nodes([]);
        for (spec, expected) in [
            (json!({"Name": "other"}), "must be named \"default\""),
            (json!({"Orchestration": {"TaskHistoryRetentionLimit": -1}}), "can't be -1"),
            (json!({"Dispatcher": {"HeartbeatPeriod": -5}}), "negative duration"),
            (json!({"Dispatcher": {"HeartbeatPeriod": 5}}), "1s or longer"),
            (json!({"Raft": {"SnapshotInterval": 100}}), "no raft log"),
            (json!({"Raft": {"ElectionTick": 3}}), "no raft log"),
            (
                json!({"CAConfig": {"NodeCertExpiry": 60_000_000_000_u64}}),
                "minimum certificate expiry time is: 1h0m0s",
            ),
            (json!({"CAConfig": {"NodeCertExpiry": -1}}), "1h0m0s"),
            (json!({"CAConfig": {"NodeCertExpiry": i64::MAX}}), "87600h"),
            (json!({"CAConfig": {"ExternalCAs": [{"URL": "https://ca"}]}}), "external CAs"),
            (json!({"TaskDefaults": {"LogDriver": {"Name": "syslog"}}}), "default log driver"),
        ] {
            let error = changed(&world, &spec, Rotation::default()).unwrap_err();
            assert!(error.contains(expected), "expected {expected:?} for {spec}, saw {error:?}");
        }
    }

    #[test]
    fn autolock_has_a_key_from_when_it_is_on_until_it_is_off() {
        let mut world = World::with_nodes([]);
        let key = |name: &str| Some(Sealed(name.to_owned()));
        for (asked, rotates, offered, expected) in [
            (json!({}), true, None, None),
            (json!({"AutoLockManagers": false}), false, None, None),
            (json!({"AutoLockManagers": true}), false, key("first"), key("first")),
            (json!({"AutoLockManagers": true}), false, None, key("first")),
            (json!({}), false, None, key("first")),
            (json!({"AutoLockManagers": true}), true, key("second"), key("second")),
            (json!({"AutoLockManagers": false}), true, None, None),
        ] {
            let spec = json!({"EncryptionConfig": asked});
            let current = world.snapshot.cluster.as_ref().unwrap();
            let read: SwarmSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(needs_unlock_key(&read, current, rotates), offered.is_some(), "a key for {spec}");
            let rotation = Rotation { unlock: offered, ..Rotation::default() };
            let cluster = changed(&world, &spec, rotation).unwrap();
            assert_eq!(cluster.unlock_key, expected, "after {spec}");
            world.put_cluster(&cluster);
        }
    }

    #[test]
    fn a_stale_client_is_refused() {
        let world = World::with_nodes([]);
        let current = world.snapshot.cluster.as_ref().unwrap();
        let stale =
            change(world.now, current, current.mod_revision - 1, &SwarmSpec::default(), Rotation::default());
        assert!(matches!(stale, Err(ApiError::OutOfSequence)), "{stale:?}");
    }
}
