//! The entries of a mesh table, by id.
//!
//! Invariant: tables share the entries that no change came between, so that the next table and the
//! message of its changes cost little more than what has changed.

use std::collections::BTreeMap;

use mesh_state::ids::{NodeId, TaskId};
use mesh_state::proto::{MeshBackend, MeshMember, MeshNetwork, MeshNode, MeshPort, MeshService};
use mesh_state::shared::{Shared, differing};

/// Entries of one kind.
pub(super) type Map<K, V> = Shared<BTreeMap<K, Shared<V>>>;

/// A table's contents.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Entries {
    pub(super) nodes: Map<String, MeshNode>,
    pub(super) services: Map<String, MeshService>,
    pub(super) backends: Map<u32, MeshBackend>,
    pub(super) networks: Map<String, MeshNetwork>,
    pub(super) members: Map<String, MeshMember>,
    /// The member behind each backend of a virtual IP.
    pub(super) member_of: Shared<BTreeMap<u32, String>>,
}

/// The entries of one service.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The service itself, if anything of it is in the table.
    pub(super) service: Option<MeshService>,
    /// The backends of its published ports.
    pub(super) backends: Vec<MeshBackend>,
    /// Its tasks on networks.
    pub(super) members: Vec<MeshMember>,
}

/// The ids of a service's entries.
#[derive(Debug, Default)]
pub(super) struct PartIds {
    service: Option<String>,
    backends: Vec<u32>,
    members: Vec<String>,
    virtual_backends: Vec<u32>,
}

impl Entries {
    /// Adds the entries of a service. Returns their ids, and whether all of them were free.
    pub(super) fn add(&mut self, part: Part) -> (PartIds, bool) {
        let mut ids = PartIds::default();
        let mut are_free = true;
        for member in part.members {
            let backends = member.attachments.iter().map(|attachment| attachment.backend_id);
            for backend in backends.filter(|backend| *backend != 0) {
                are_free &= self.member_of.insert(backend, member.id.clone()).is_none();
                ids.virtual_backends.push(backend);
            }
            ids.members.push(member.id.clone());
            are_free &= self.members.insert(member.id.clone(), member.into()).is_none();
        }
        for backend in part.backends {
            ids.backends.push(backend.id);
            are_free &= self.backends.insert(backend.id, backend.into()).is_none();
        }
        if let Some(service) = part.service {
            ids.service = Some(service.id.clone());
            are_free &= self.services.insert(service.id.clone(), service.into()).is_none();
        }
        (ids, are_free)
    }

    /// Removes the entries of a service.
    pub(super) fn remove(&mut self, ids: &PartIds) {
        for backend in &ids.virtual_backends {
            self.member_of.remove(backend);
        }
        for member in &ids.members {
            self.members.remove(member);
        }
        for backend in &ids.backends {
            self.backends.remove(backend);
        }
        if let Some(service) = &ids.service {
            self.services.remove(service);
        }
    }

    /// Removes the backends and members of ended tasks, each named with the node that reports it.
    pub(super) fn remove_ended(&mut self, ended: &BTreeMap<TaskId, NodeId>) {
        let says_so =
            |task: &str, on: &str| ended.get(&TaskId::from(task)).is_some_and(|node| node.as_str() == on);
        let backends = self.backends.values().filter(|backend| says_so(&backend.task_id, &backend.node_id));
        for backend in backends.map(|backend| backend.id).collect::<Vec<_>>() {
            self.backends.remove(&backend);
        }
        let members = self.members.values().filter(|member| says_so(&member.id, &member.node_id));
        let members: Vec<String> = members.map(|member| member.id.clone()).collect();
        for member in &members {
            self.members.remove(member);
        }
        if !members.is_empty() {
            let Self { members, member_of, .. } = self;
            member_of.retain(|_, member| members.contains_key(member));
        }
    }

    /// Whether a service answers on a published port.
    pub(super) fn answers_on(&self, port: &MeshPort) -> bool {
        let ports = self.services.values().flat_map(|service| &service.ports);
        ports.into_iter().any(|taken| (&taken.protocol, taken.published) == (&port.protocol, port.published))
    }
}

/// All values, in the order of their keys.
pub(super) fn values<K: Ord, V: Clone>(map: &Map<K, V>) -> Vec<V> {
    map.values().map(|value| V::clone(value)).collect()
}

/// The new and changed values, and the removed keys.
pub(super) fn changes<K: Ord + Clone, V: PartialEq + Clone>(
    old: &Map<K, V>,
    new: &Map<K, V>,
) -> (Vec<V>, Vec<K>) {
    let (mut set, mut removed) = (Vec::new(), Vec::new());
    for (key, value) in differing(old, new, PartialEq::eq) {
        match value {
            Some(value) => set.push(V::clone(value)),
            None => removed.push(key.clone()),
        }
    }
    (set, removed)
}
