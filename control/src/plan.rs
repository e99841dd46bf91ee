//! A planner's decision: writes with the revisions that they depend on, and the reasons.
//!
//! Invariant: a plan leaves no choice to its execution. The driver turns each [`Action`] into one
//! write with its compare, adds the leader's fence, commits all in one transaction (split where
//! etcd's limits demand) and discards the plan on a conflict.

use mesh_state::Timestamp;
use mesh_state::attachment::AttachedContainer;
use mesh_state::cluster::Cluster;
use mesh_state::ids::{AttachmentId, BackendId, NodeId, ServiceId, TaskId};
use mesh_state::member_keys::MemberKeys;
use mesh_state::network::{Network, NetworkCursor};
use mesh_state::node::{Liveness, Node};
use mesh_state::service::Service;
use mesh_state::spec::Protocol;
use mesh_state::task::{Task, TaskStatus};

/// One write.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a plan is short and short-lived; boxes would cost more than they save"
)]
pub enum Action {
    /// Create a task; its key must not exist.
    CreateTask(Task),
    /// Rewrite a task, which must be at revision `expected` (its `mod_revision`).
    UpdateTask {
        /// The new value.
        task: Task,
        /// The revision that the decision is based on.
        expected: i64,
    },
    /// Delete a task and its observed status.
    DeleteTask {
        /// The task that is deleted.
        id: TaskId,
        /// The revision that the decision is based on.
        expected: i64,
    },
    /// Rewrite a service (its update status, a rollback's spec). Also stores its spec version if
    /// that is new, and moves its references to secrets and configs.
    UpdateService {
        /// The new value.
        service: Service,
        /// The revision that the decision is based on.
        expected: i64,
    },
    /// Delete a version of a service's spec that no task refers to any more.
    DeleteSpec {
        /// The service that the version belongs to.
        service: ServiceId,
        /// The number of the version that is deleted.
        version: u64,
    },
    /// Rewrite a node (its subnet).
    UpdateNode {
        /// The new value.
        node: Node,
        /// The revision that the decision is based on.
        expected: i64,
    },
    /// Rewrite a network (its number, its subnet, its nodes' addresses).
    UpdateNetwork {
        /// The new value.
        network: Network,
        /// The revision that the decision is based on.
        expected: i64,
    },
    /// Rewrite an attached container (its address).
    UpdateAttachment {
        /// The new value.
        container: AttachedContainer,
        /// The revision that the decision is based on.
        expected: i64,
    },
    /// Delete the attachment of a container.
    DeleteAttachment {
        /// The attachment that is deleted.
        id: AttachmentId,
        /// The revision that the decision is based on.
        expected: i64,
    },
    /// Set a node's liveness; `expected` is the liveness key's revision, `None` if there is none
    /// yet.
    SetLiveness {
        /// The node that is judged.
        node: NodeId,
        /// The leader's new judgement.
        liveness: Liveness,
        /// The revision that the decision is based on.
        expected: Option<i64>,
    },
    /// Set an observed state that no node can report any more (orphaned, or shut down before any
    /// node had the task).
    SetStatus {
        /// The task whose status is overruled.
        task: TaskId,
        /// The status as the leader sets it.
        status: TaskStatus,
        /// The status key's revision, `None` if there is none yet.
        expected: Option<i64>,
    },
    /// Set the backend id given last, so that ids are reused as late as possible.
    SetBackendCursor {
        /// The id that was given last.
        last: BackendId,
        /// The cursor key's revision, `None` if there is none yet.
        expected: Option<i64>,
    },
    /// Store what networks were given last; `expected` is the cursor's revision, `None` if there is
    /// none yet.
    SetNetworkCursor {
        /// The new value.
        cursor: NetworkCursor,
        /// The revision that the decision is based on.
        expected: Option<i64>,
    },
    /// Set the record of the secrets that members share; `expected` is its revision, `None` if
    /// there is none yet.
    SetMemberKeys {
        /// The new value.
        keys: MemberKeys,
        /// The revision that the decision is based on.
        expected: Option<i64>,
    },
    /// Rewrite the cluster's record (the next step of a rotation of its CA).
    UpdateCluster {
        /// The new value.
        cluster: Cluster,
        /// The revision that the decision is based on.
        expected: i64,
    },
    /// Claim a published port for a service (by a rollback); its key must not exist.
    ClaimPort {
        /// Transport protocol of the port.
        protocol: Protocol,
        /// The published port that the service takes.
        port: u16,
        /// The service that gets it.
        service: ServiceId,
    },
    /// Release a published port (by a rollback).
    ReleasePort {
        /// Transport protocol of the port.
        protocol: Protocol,
        /// The published port that becomes free.
        port: u16,
        /// The revision that the decision is based on.
        expected: i64,
    },
}

/// A planner's decision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The writes, in order.
    pub actions: Vec<Action>,
    /// The reasons, for the operator; they are logged.
    pub reasons: Vec<String>,
    /// The earliest moment at which time alone may make another pass useful.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Asks for a pass at `moment`, unless an earlier one is asked for.
    pub fn wake_by(&mut self, moment: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(moment, |earlier| earlier.min(moment)));
    }
}
