//! Reports of nodes that the store doesn't hold yet: the newest of each kind, until the snapshot
//! shows it.
//!
//! Invariants: pure; bounded by the cluster's tasks and nodes, as newer reports replace older ones;
//! a report is checked against the snapshot when it is written, so a node reports on its own tasks
//! only and an observed state only rises; a report that no transaction can hold is dropped alone,
//! and blocks no other.
//!
//! Left to others: writing ([`super::recorder`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::Ipv4Net;
use mesh_state::Timestamp;
use mesh_state::codec::{self, CodecError};
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::keys;
use mesh_state::node::{Liveness, Node, NodeDescription, NodeState, PortClash};
use mesh_state::store::{Compare, MAX_TXN_BYTES, Op, generation_of};
use mesh_state::task::TaskStatus;
use serde::Serialize;

use crate::feed::snapshot::{ClusterSnapshot, Stored};

/// Reports that are not stored yet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mailbox {
    statuses: BTreeMap<TaskId, (NodeId, TaskStatus)>,
    acks: BTreeMap<NodeId, u64>,
    liveness: BTreeMap<NodeId, Heard>,
    descriptions: BTreeMap<NodeId, (NodeDescription, IpAddr)>,
    clashes: BTreeMap<NodeId, Vec<PortClash>>,
    host_networks: BTreeMap<NodeId, Vec<Ipv4Net>>,
}

/// Whether a node is heard, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// `Ready` or `Silent`.
    pub state: NodeState,
    /// Since when it is in this state.
    pub since: Timestamp,
}

/// One write with its conditions.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingWrite {
    /// What must still hold for the write to happen.
    pub compares: Vec<Compare>,
    /// What is written if it holds.
    pub op: Op,
}

impl PendingWrite {
    /// The bytes that it adds to a transaction.
    pub fn size(&self) -> usize {
        self.op.size() + self.compares.iter().map(Compare::size).sum::<usize>()
    }
}

/// A report that was dropped because it can't be stored.
#[derive(Debug)]
pub struct Unwritable {
    /// The key that it would have.
    pub key: String,
    /// Why not.
    pub reason: String,
}

/// The writes, and the reports that can't be written.
#[derive(Debug, Default)]
pub struct Sorted {
    /// The writes, in their order.
    pub entries: Vec<PendingWrite>,
    /// The reports that were dropped.
    pub dropped: Vec<Unwritable>,
}

impl Sorted {
    /// Adds one write; returns `false` if it can never be written.
    fn take(&mut self, key: String, entry: Result<PendingWrite, CodecError>) -> bool {
        let reason = match entry {
            Ok(entry) if entry.size() <= MAX_TXN_BYTES => {
                self.entries.push(entry);
                return true;
            }
            Ok(entry) => {
                format!("it takes {} bytes, a transaction has room for {MAX_TXN_BYTES}", entry.size())
            }
            Err(error) => error.to_string(),
        };
        self.dropped.push(Unwritable { key, reason });
        false
    }
}

/// Whether the store holds a reported status, or a later one of the same task.
pub fn holds(stored: Option<&TaskStatus>, reported: &TaskStatus) -> bool {
    stored.is_some_and(|stored| stored.clone().advance(reported.clone()) == *stored)
}

impl Mailbox {
    /// Adds the status of a task that `node` observed.
    pub fn put_status(&mut self, node: NodeId, task: TaskId, status: TaskStatus) {
        let newest = match self.statuses.remove(&task) {
            Some((reporter, earlier)) if reporter == node => earlier.advance(status),
            _ => status,
        };
        self.statuses.insert(task, (node, newest));
    }

    /// Tasks with a reported end that the store may not hold yet, each with the node that reported
    /// it.
    pub fn ended(&self) -> BTreeMap<TaskId, NodeId> {
        let ended = self.statuses.iter().filter(|(_, (_, status))| status.state.is_terminal());
        ended.map(|(task, (node, _))| (task.clone(), node.clone())).collect()
    }

    /// Adds the generation of the mesh table that `node` has acknowledged.
    pub fn put_ack(&mut self, node: NodeId, generation: u64) {
        self.acks.insert(node, generation);
    }

    /// Adds whether `node` is heard.
    pub fn put_heard(&mut self, node: NodeId, heard: Heard) {
        self.liveness.insert(node, heard);
    }

    /// Drops what was reported of whether `node` is heard.
    pub fn drop_heard(&mut self, node: &NodeId) {
        self.liveness.remove(node);
    }

    /// Adds the description that `node` sent of itself.
    pub fn put_description(&mut self, node: NodeId, description: NodeDescription, address: IpAddr) {
        self.descriptions.insert(node, (description, address));
    }

    /// Drops what `node` said of itself in a session that is over: its description, its clashes,
    /// its host's networks. It says all of it again in its next session, maybe to another manager,
    /// and may say something else: what is left here would undo that.
    pub fn drop_said(&mut self, node: &NodeId) {
        self.descriptions.remove(node);
        self.clashes.remove(node);
        self.host_networks.remove(node);
    }

    /// Adds the published ports that `node` can't listen on; it listens on all others.
    pub fn put_clashes(&mut self, node: NodeId, clashes: Vec<PortClash>) {
        self.clashes.insert(node, clashes);
    }

    /// Adds the networks of `node`'s host.
    pub fn put_host_networks(&mut self, node: NodeId, networks: Vec<Ipv4Net>) {
        self.host_networks.insert(node, networks);
    }

    /// Whether the mailbox is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Drops what the store holds by now and what may not be written: reports on objects that don't
    /// exist or aren't the node's, and the silence of a node that has a session with another
    /// manager.
    pub fn settle(&mut self, snapshot: &ClusterSnapshot, manager: &str) {
        self.statuses.retain(|id, (node, status)| {
            let of_node = snapshot.tasks.get(id).is_some_and(|task| task.node_id.as_ref() == Some(node));
            of_node && !holds(stored_status(snapshot, id), status)
        });
        self.acks.retain(|id, generation| {
            let newest = generation_of(snapshot.revision);
            // A stored generation that is newer than the store is invalid: an earlier version of
            // mesh stored what nodes said unchecked.
            let is_news = |acked: u64| acked < *generation || acked > newest;
            snapshot.nodes.contains_key(id) && snapshot.acks.get(id).is_none_or(|acked| is_news(acked.value))
        });
        self.liveness.retain(|id, heard| {
            let ours =
                snapshot.liveness.get(id).map(|liveness| (liveness.state, liveness.manager == manager));
            snapshot.nodes.contains_key(id)
                && match (heard.state, ours) {
                    (NodeState::Ready, ours) => ours != Some((NodeState::Ready, true)),
                    (_, ours) => ours == Some((NodeState::Ready, true)),
                }
        });
        self.descriptions.retain(|id, (description, address)| {
            let node = snapshot.nodes.get(id);
            node.is_some_and(|node| node.description != *description || node.address != Some(*address))
        });
        self.clashes.retain(|id, clashes| {
            // A node that never had a clash has no record.
            let stored = snapshot.clashes.get(id).map_or(&[][..], |stored| &stored.value);
            snapshot.nodes.contains_key(id) && stored != clashes.as_slice()
        });
        self.host_networks.retain(|id, networks| {
            let stored = snapshot.host_networks.get(id).map(|stored| &stored.value);
            snapshot.nodes.contains_key(id) && stored != Some(&*networks)
        });
    }

    /// The pending writes, each with the conditions that `snapshot` shows. Liveness comes first: it
    /// decides where traffic goes. What can't be encoded, or fits no transaction, is dropped here.
    pub fn entries(&mut self, snapshot: &ClusterSnapshot, manager: &str, now: Timestamp) -> Sorted {
        let mut sorted = Sorted::default();
        self.liveness.retain(|id, heard| {
            let liveness = Liveness {
                state: heard.state,
                since: heard.since,
                message: String::new(),
                manager: manager.to_owned(),
            };
            let key = keys::liveness(id);
            sorted.take(key.clone(), write(key, snapshot.liveness.get(id), keys::node(id), &liveness))
        });
        self.statuses.retain(|id, (_, status)| {
            let stored = snapshot.statuses.get(id);
            let before = stored.map(|stored| &stored.value);
            let status = before.cloned().unwrap_or_default().advance(status.clone()).recorded(before, now);
            let key = keys::status(id);
            sorted.take(key.clone(), write(key, stored, keys::task(id), &status))
        });
        self.descriptions.retain(|id, (description, address)| {
            let Some(stored) = snapshot.nodes.get(id) else { return true };
            let node = Node {
                description: description.clone(),
                address: Some(*address),
                updated_at: now,
                ..stored.value.clone()
            };
            let key = keys::node(id);
            sorted.take(key.clone(), write(key.clone(), Some(stored), key, &node))
        });
        self.acks.retain(|id, generation| {
            let key = keys::ack(id);
            sorted.take(key.clone(), write(key, snapshot.acks.get(id), keys::node(id), generation))
        });
        self.clashes.retain(|id, clashes| {
            let key = keys::clashes(id);
            sorted.take(key.clone(), write(key, snapshot.clashes.get(id), keys::node(id), clashes))
        });
        self.host_networks.retain(|id, networks| {
            let key = keys::host_networks(id);
            sorted.take(key.clone(), write(key, snapshot.host_networks.get(id), keys::node(id), networks))
        });
        sorted
    }
}

/// A write of `key` over what is `stored`, on condition that `owner` exists.
fn write<T, V: Serialize>(
    key: String,
    stored: Option<&Stored<T>>,
    owner: String,
    value: &V,
) -> Result<PendingWrite, CodecError> {
    let stands = match stored {
        Some(stored) => Compare::ModRevision(key.clone(), stored.mod_revision),
        None => Compare::Absent(key.clone()),
    };
    Ok(PendingWrite {
        compares: vec![stands, Compare::Exists(owner)],
        op: Op::put(key, codec::encode(value)?),
    })
}

fn stored_status<'a>(snapshot: &'a ClusterSnapshot, task: &TaskId) -> Option<&'a TaskStatus> {
    snapshot.statuses.get(task).map(|stored| &stored.value)
}

#[cfg(test)]
mod tests;
