//! `Node`.

use mesh_state::Timestamp;
use mesh_state::node::{Node as StoredNode, NodeRole, NodeSpec, NodeState};
use mesh_state::spec::{GenericResource, Labels};
use serde::Serialize;

use super::Version;
use super::tls_info::TlsInfo;
use crate::feed::snapshot::{ClusterSnapshot, Versioned};

/// The node service's default port, for managers whose record doesn't have it.
const MANAGER_PORT: u16 = 2377;

/// A member node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Node {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: Timestamp,
    updated_at: Timestamp,
    spec: NodeSpec,
    description: Description,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    manager_status: Option<ManagerStatus>,
    mesh: MeshStatus,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    hostname: String,
    platform: Platform,
    resources: NodeResources,
    engine: Engine,
    #[serde(rename = "TLSInfo", skip_serializing_if = "Option::is_none")]
    tls_info: Option<TlsInfo>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Platform {
    architecture: String,
    #[serde(rename = "OS")]
    os: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeResources {
    #[serde(rename = "NanoCPUs")]
    nano_cpus: i64,
    memory_bytes: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    generic_resources: Vec<GenericResource>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Engine {
    engine_version: String,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    plugins: Vec<Plugin>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Plugin {
    r#type: String,
    name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    addr: String,
}

/// The manager part of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManagerStatus {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    leader: bool,
    reachability: &'static str,
    addr: String,
}

/// mesh's additions to Docker's object; Docker's clients ignore them, `mesh status` shows them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct MeshStatus {
    liveness: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet: Option<ipnet::Ipv4Net>,
    datapath: String,
    agent_version: String,
    kernel: String,
    /// How far its clock is ahead of its manager's; `None` below a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_ahead_ms: Option<i64>,
}

impl Node {
    /// The API object of a stored node, with its liveness.
    pub(crate) fn new(snapshot: &ClusterSnapshot, node: &Versioned<StoredNode>) -> Self {
        let stored = &node.value;
        let liveness = snapshot.liveness.get(&stored.id);
        let state = snapshot.node_state(&stored.id);
        let said = liveness.map(|liveness| liveness.message.clone()).unwrap_or_default();
        let (state_word, message) = match state {
            NodeState::Down => ("down", said),
            // Its tasks go on, and it gets no new ones.
            _ if !stored.description.unfit.is_empty() => ("unknown", stored.description.unfit.clone()),
            // A silent node keeps its tasks, so Docker's clients see it as ready.
            NodeState::Ready | NodeState::Silent => ("ready", said),
        };
        Self {
            id: stored.id.to_string(),
            version: Version { index: node.mod_revision },
            created_at: stored.created_at,
            updated_at: stored.updated_at,
            spec: stored.spec.clone(),
            description: describe(snapshot, stored),
            status: Status {
                state: state_word,
                message,
                addr: stored.address.map(|address| address.to_string()).unwrap_or_default(),
            },
            manager_status: (stored.spec.role == NodeRole::Manager && runs_manager(snapshot, stored))
                .then(|| manager_status(snapshot, stored)),
            mesh: MeshStatus {
                liveness: state.as_str(),
                since: liveness.map(|liveness| liveness.since),
                subnet: stored.subnet,
                datapath: stored.description.datapath.clone(),
                agent_version: stored.description.agent_version.clone(),
                kernel: stored.description.kernel.clone(),
                clock_ahead_ms: snapshot.clock_ahead_ms(&stored.id),
            },
        }
    }
}

/// Whether mesh-control is alive on a node, or its agent says that one belongs there, or it has a
/// place in the managers' etcd. The role alone makes no node a manager.
pub(crate) fn runs_manager(snapshot: &ClusterSnapshot, node: &StoredNode) -> bool {
    snapshot.manager_on(&node.id).is_some()
        || node.description.manager_address.is_some()
        || snapshot.etcd_places.contains_key(&node.id)
}

/// The address of a manager's node service.
pub(crate) fn manager_address(node: &StoredNode) -> String {
    let from_address = || node.address.map(|address| format!("{address}:{MANAGER_PORT}"));
    node.description.manager_address.clone().or_else(from_address).unwrap_or_default()
}

/// A manager is reachable while it keeps its lease in etcd, whatever the state of its node's agent.
fn manager_status(snapshot: &ClusterSnapshot, node: &StoredNode) -> ManagerStatus {
    let alive = snapshot.manager_on(&node.id).is_some();
    ManagerStatus {
        leader: snapshot.is_led_from(&node.id),
        reachability: if alive { "reachable" } else { "unreachable" },
        addr: manager_address(node),
    }
}

fn describe(snapshot: &ClusterSnapshot, node: &StoredNode) -> Description {
    let said = &node.description;
    Description {
        hostname: said.hostname.clone(),
        platform: Platform { architecture: said.architecture.clone(), os: said.os.clone() },
        resources: NodeResources {
            nano_cpus: said.nano_cpus,
            memory_bytes: said.memory_bytes,
            generic_resources: said.generic_resources.clone(),
        },
        engine: Engine {
            engine_version: said.engine_version.clone(),
            labels: said.engine_labels.clone(),
            plugins: said
                .plugins
                .iter()
                .map(|(kind, name)| Plugin { r#type: kind.clone(), name: name.clone() })
                .collect(),
        },
        tls_info: snapshot.cluster.as_ref().map(|cluster| TlsInfo::of_node(cluster, said)),
    }
}
