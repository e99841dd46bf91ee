//! `Swarm`, and the part of `/info` about it.

use mesh_state::Timestamp;
use mesh_state::cluster::Cluster as StoredCluster;
use mesh_state::node::{Node, NodeRole};
use mesh_state::spec::Labels;
use serde::Serialize;

use super::Version;
use super::node::{manager_address, runs_manager};
use super::tls_info::TlsInfo;
use crate::feed::snapshot::{ClusterSnapshot, Versioned};
use crate::slots::own_ports;

/// The cluster as `/info` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Cluster {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: Timestamp,
    updated_at: Timestamp,
    spec: ClusterSpec,
    #[serde(rename = "TLSInfo")]
    tls_info: TlsInfo,
    root_rotation_in_progress: bool,
    default_addr_pool: Vec<String>,
    subnet_size: u8,
    data_path_port: u16,
}

/// The cluster with its tokens as `/swarm` shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SwarmObject {
    /// The fields of `ClusterInfo`, which `docker info` shows as well.
    #[serde(flatten)]
    pub(crate) cluster: Cluster,
    /// With what a new node joins.
    pub(crate) join_tokens: JoinTokens,
}

/// With what new nodes join, by the role that they get.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct JoinTokens {
    /// The token of a node that becomes a worker.
    pub(crate) worker: String,
    /// The token of a node that becomes a manager.
    pub(crate) manager: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ClusterSpec {
    name: &'static str,
    labels: Labels,
    orchestration: Orchestration,
    raft: Raft,
    dispatcher: Dispatcher,
    #[serde(rename = "CAConfig")]
    ca_config: CaConfig,
    task_defaults: TaskDefaults,
    encryption_config: EncryptionConfig,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Orchestration {
    task_history_retention_limit: u64,
}

/// Swarm's settings of its raft log, with their defaults. mesh has no raft log (etcd has), so none
/// of them can be set; clients of Swarm expect the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Raft {
    /// Log entries between two snapshots.
    pub(crate) snapshot_interval: u64,
    /// Snapshots kept beside the newest.
    pub(crate) keep_old_snapshots: u64,
    /// Log entries kept for managers that are behind.
    pub(crate) log_entries_for_slow_followers: u64,
    /// Ticks without a leader before an election.
    pub(crate) election_tick: u64,
    /// Ticks between a leader's heartbeats.
    pub(crate) heartbeat_tick: u64,
}

/// The values that are shown; an update must have the same.
pub(crate) const RAFT: Raft = Raft {
    snapshot_interval: 10_000,
    keep_old_snapshots: 0,
    log_entries_for_slow_followers: 500,
    election_tick: 10,
    heartbeat_tick: 1,
};

/// Defaults of tasks; mesh has none.
#[derive(Debug, Clone, Serialize)]
struct TaskDefaults {}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Dispatcher {
    heartbeat_period: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct CaConfig {
    node_cert_expiry: u64,
    #[serde(skip_serializing_if = "is_zero")]
    force_rotate: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EncryptionConfig {
    auto_lock_managers: bool,
}

impl Cluster {
    /// The cluster of the snapshot; `None` before there is a record.
    pub(crate) fn of(snapshot: &ClusterSnapshot) -> Option<Self> {
        snapshot.cluster.as_ref().map(|cluster| Self::new(cluster, own_ports::tunnel(snapshot)))
    }

    fn new(cluster: &Versioned<StoredCluster>, data_path_port: u16) -> Self {
        let stored = &cluster.value;
        Self {
            id: stored.id.to_string(),
            version: Version { index: cluster.mod_revision },
            created_at: stored.created_at,
            updated_at: stored.updated_at.unwrap_or(stored.created_at),
            spec: ClusterSpec {
                name: "default",
                labels: stored.labels.clone(),
                orchestration: Orchestration { task_history_retention_limit: stored.task_history_limit },
                raft: RAFT,
                dispatcher: Dispatcher { heartbeat_period: stored.heartbeat_period_ns },
                ca_config: CaConfig {
                    node_cert_expiry: stored.node_cert_expiry_ns,
                    force_rotate: stored.force_rotate,
                },
                task_defaults: TaskDefaults {},
                encryption_config: EncryptionConfig { auto_lock_managers: stored.unlock_key.is_some() },
            },
            tls_info: TlsInfo::of_cluster(stored),
            root_rotation_in_progress: stored.ca_rotation.is_some(),
            default_addr_pool: vec![stored.network_pool.to_string()],
            subnet_size: stored.network_prefix,
            data_path_port,
        }
    }
}

/// The `Swarm` section of `/info`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SwarmInfo {
    #[serde(rename = "NodeID")]
    node_id: String,
    node_addr: String,
    local_node_state: &'static str,
    control_available: bool,
    error: String,
    remote_managers: Vec<RemoteManager>,
    nodes: usize,
    managers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Cluster>,
    mesh: MeshInfo,
}

/// mesh's additions to Docker's object; Docker's clients ignore them, `mesh status` shows them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct MeshInfo {
    /// The name of the leading manager; `None` while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RemoteManager {
    #[serde(rename = "NodeID")]
    node_id: String,
    addr: String,
}

impl SwarmInfo {
    /// The cluster as the manager on node `own` sees it; `error` is the reason why it can't serve,
    /// if any.
    pub(crate) fn new(snapshot: &ClusterSnapshot, own: Option<&Node>, error: String) -> Self {
        let managers = || {
            let nodes = snapshot.nodes.values();
            nodes.filter(|node| node.spec.role == NodeRole::Manager && runs_manager(snapshot, node))
        };
        Self {
            node_id: own.map(|node| node.id.to_string()).unwrap_or_default(),
            node_addr: own
                .and_then(|node| node.address)
                .map(|address| address.to_string())
                .unwrap_or_default(),
            local_node_state: "active",
            control_available: true,
            error,
            remote_managers: managers()
                .map(|node| RemoteManager { node_id: node.id.to_string(), addr: manager_address(node) })
                .collect(),
            nodes: snapshot.nodes.len(),
            managers: managers().count(),
            cluster: Cluster::of(snapshot),
            mesh: MeshInfo { leader: snapshot.leader.as_ref().map(|leader| leader.name.clone()) },
        }
    }
}
