//! What a planner decided: writes with the revisions they stand on, and why.
//!
//! Invariant: a plan leaves no choice to its execution. The driver turns each [`Action`] into one
//! write with its compare, adds the leader's fence, commits all in one transaction (cut where
//! etcd's limits demand) and discards the plan on a conflict.

use mesh_state::Timestamp;
use mesh_state::ids::{BackendId, NodeId, ServiceId, TaskId};
use mesh_state::member_keys::MemberKeys;
use mesh_state::network::Network;
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
    /// A new task; its key must not exist.
    CreateTask(Task),
    /// A task rewritten; it must stand at `expected` (its `mod_revision`).
    UpdateTask {
        /// The task as it is to be.
        task: Task,
        /// The revision that the decision was taken on.
        expected: i64,
    },
    /// A task and its observed status forgotten.
    DeleteTask {
        /// The task.
        id: TaskId,
        /// The revision that the decision was taken on.
        expected: i64,
    },
    /// A service rewritten (its update status, a rollback's spec). A spec version that is new is
    /// stored beside it, and its references to secrets and configs are moved.
    UpdateService {
        /// The service as it is to be.
        service: Service,
        /// The revision that the decision was taken on.
        expected: i64,
    },
    /// One version of a service's spec that no task refers to any more, forgotten.
    DeleteSpec {
        /// The service.
        service: ServiceId,
        /// The version.
        version: u64,
    },
    /// A node rewritten (its subnet).
    UpdateNode {
        /// The node as it is to be.
        node: Node,
        /// The revision that the decision was taken on.
        expected: i64,
    },
    /// A network rewritten (its number, its subnet, its nodes' addresses).
    UpdateNetwork {
        /// The network as it is to be.
        network: Network,
        /// The revision that the decision was taken on.
        expected: i64,
    },
    /// What the cluster believes of a node; `expected` is the liveness key's revision, `None` if
    /// there is none yet.
    SetLiveness {
        /// The node.
        node: NodeId,
        /// The belief.
        liveness: Liveness,
        /// The revision that the decision was taken on.
        expected: Option<i64>,
    },
    /// An observed state that no node can report any more (orphaned, or shut down before any node
    /// had it).
    SetStatus {
        /// The task.
        task: TaskId,
        /// The state.
        status: TaskStatus,
        /// The status key's revision, `None` if there is none yet.
        expected: Option<i64>,
    },
    /// The backend id given last, so that ids come round as late as possible.
    SetBackendCursor {
        /// The id.
        last: BackendId,
        /// The cursor key's revision, `None` if there is none yet.
        expected: Option<i64>,
    },
    /// The secrets that members share; `expected` is the record's revision, `None` if there is none
    /// yet.
    SetMemberKeys {
        /// The record as it is to be.
        keys: MemberKeys,
        /// The revision that the decision was taken on.
        expected: Option<i64>,
    },
    /// A published port claimed for a service (by a rollback); its key must not exist.
    ClaimPort {
        /// Transport.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// Who gets it.
        service: ServiceId,
    },
    /// A published port given up (by a rollback).
    ReleasePort {
        /// Transport.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// The revision that the decision was taken on.
        expected: i64,
    },
}

/// What a planner decided.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The writes, to be committed together.
    pub actions: Vec<Action>,
    /// Why, in words an operator can read; for logs.
    pub reasons: Vec<String>,
    /// The earliest moment at which time alone makes a new pass worth while.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Asks for a pass at `moment`, unless an earlier one is asked for already.
    pub fn wake_by(&mut self, moment: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(moment, |earlier| earlier.min(moment)));
    }
}
