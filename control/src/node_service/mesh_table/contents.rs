//! The contents of the mesh table, which follow the snapshots: with each one, only what its changes
//! may have touched is made anew.
//!
//! Invariant: after any changes, the contents are those that the newest snapshot alone gives.
//!
//! What an entry is made of decides what touches it. A service's entries come from its record, its
//! spec's versions, its tasks and their statuses, and from whether its networks have their subnets.
//! Nodes and their liveness touch everything; they change rarely.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_state::attachment::AttachedContainer;
use mesh_state::ids::{NetworkId, ServiceId};
use mesh_state::network::Network;
use mesh_state::shared::{Shared, differing};
use mesh_state::store::generation_of;

use super::entries::{Entries, Part, PartIds};
use super::{Table, ingress_ports, members, nodes, part, removed_service};
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::slots::addresses::is_served;
use crate::slots::networks::named_by;

/// The contents of the table of one snapshot, and what is needed to follow to the next one.
#[derive(Debug, Default)]
pub struct Contents {
    entries: Entries,
    parts: BTreeMap<ServiceId, KnownPart>,
    /// Removed services that still have tasks.
    removed: BTreeSet<ServiceId>,
    /// Whether two entries have one id, so that it depends on their order which one is in the
    /// table. The store never holds such a state; if it does, everything is made anew each time.
    is_ambiguous: bool,
    snapshot: Option<Arc<ClusterSnapshot>>,
}

/// What the table has of a service.
#[derive(Debug, Default)]
struct KnownPart {
    ids: PartIds,
    /// The networks that its spec names.
    named: Vec<NetworkId>,
}

/// What has to be made anew.
#[derive(Debug, Default)]
struct Stale<'a> {
    services: BTreeSet<&'a ServiceId>,
    /// Networks that have got or lost their entry.
    served: BTreeSet<&'a NetworkId>,
}

impl Contents {
    /// The contents of the table of a snapshot.
    pub fn of(snapshot: &ClusterSnapshot) -> Self {
        let mut contents = Self::default();
        contents.entries.nodes = nodes(snapshot);
        contents.entries.networks = snapshot
            .networks
            .values()
            .filter_map(|network| members::network(network))
            .map(|network| (network.id.clone(), network.into()))
            .collect();
        for id in snapshot.services.keys() {
            contents.add_service(snapshot, id);
        }
        for container in snapshot.attachments.values() {
            contents.add_container(snapshot, container);
        }
        let with_tasks = snapshot.services_with_tasks();
        contents.removed = with_tasks.filter(|id| !snapshot.services.contains_key(id)).cloned().collect();
        contents.add_removed(snapshot);
        contents
    }

    /// Follows to a newer snapshot; returns its table.
    pub fn follow(&mut self, snapshot: &Arc<ClusterSnapshot>) -> Table {
        let before =
            self.snapshot.take().filter(|before| !self.is_ambiguous && has_same_nodes(before, snapshot));
        if let Some(before) = &before {
            self.update(before, snapshot);
        }
        if before.is_none() || self.is_ambiguous {
            *self = Self::of(snapshot);
        }
        self.snapshot = Some(Arc::clone(snapshot));
        self.table(snapshot)
    }

    /// The table of these contents.
    pub(super) fn table(&self, snapshot: &ClusterSnapshot) -> Table {
        Table {
            generation: generation_of(snapshot.revision),
            committed_unix_ms: snapshot.received_at.timestamp_millis(),
            entries: self.entries.clone(),
        }
    }

    fn update(&mut self, before: &ClusterSnapshot, snapshot: &ClusterSnapshot) {
        let mut stale = Stale::default();
        for (id, network) in differing(&before.networks, &snapshot.networks, Arc::ptr_eq) {
            let was_served = before.networks.get(id).is_some_and(|network| is_served(network));
            if was_served != network.is_some_and(|network| is_served(network)) {
                stale.served.insert(id);
            }
            self.replace_network(id, network.map(|network| &network.value));
        }
        stale.note_services(before, snapshot);
        let parts = if stale.served.is_empty() { None } else { Some(&self.parts) };
        let naming = parts.into_iter().flatten();
        let naming = naming.filter(|(_, part)| part.named.iter().any(|id| stale.served.contains(id)));
        let naming: Vec<ServiceId> = naming.map(|(id, _)| id.clone()).collect();

        // The ports of removed services depend on those of all others.
        for id in std::mem::take(&mut self.removed) {
            self.remove_service(&id);
            self.note_removed(snapshot, &id);
        }
        let touched: BTreeSet<&ServiceId> = stale.services.iter().copied().chain(&naming).collect();
        for id in &touched {
            self.remove_service(id);
            self.note_removed(snapshot, id);
        }
        for id in &touched {
            self.add_service(snapshot, id);
        }
        self.replace_containers(before, snapshot, &stale.served);
        self.add_removed(snapshot);
    }

    fn replace_network(&mut self, id: &NetworkId, network: Option<&Network>) {
        match network.and_then(members::network) {
            Some(entry) => drop(self.entries.networks.insert(entry.id.clone(), entry.into())),
            None => drop(self.entries.networks.remove(id.as_str())),
        }
    }

    fn replace_containers(
        &mut self,
        before: &ClusterSnapshot,
        snapshot: &ClusterSnapshot,
        served: &BTreeSet<&NetworkId>,
    ) {
        let mut stale: BTreeSet<_> = differing(&before.attachments, &snapshot.attachments, Arc::ptr_eq)
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        if !served.is_empty() {
            let attached = snapshot.attachments.iter();
            let on = attached.filter(|(_, container)| served.contains(&container.network_id));
            stale.extend(on.map(|(id, _)| id));
        }
        for id in &stale {
            let known = self.entries.members.get(id.as_str());
            if known.is_some_and(|member| member.service_id.is_empty()) {
                self.entries.members.remove(id.as_str());
            }
        }
        for container in stale.into_iter().filter_map(|id| snapshot.attachments.get(id)) {
            self.add_container(snapshot, container);
        }
    }

    /// Adds what the table has of a service, unless the service was removed.
    fn add_service(&mut self, snapshot: &ClusterSnapshot, id: &ServiceId) {
        let Some(service) = snapshot.services.get(id) else { return };
        let (ports, networks) = (ingress_ports(service), members::of_service(snapshot, service));
        let named = named_by(&service.spec).into_iter().map(|named| named.id).collect();
        let part = part(snapshot, id, &service.spec, ports, networks);
        self.add_part(id, part, named);
    }

    /// Adds what the table has of removed services. A removed service is on no network any more, so
    /// its name resolves to nothing.
    fn add_removed(&mut self, snapshot: &ClusterSnapshot) {
        let is_taken = |port: &_| self.entries.answers_on(port);
        let removed = self.removed.iter().filter_map(|id| {
            let (spec, ports) = removed_service(snapshot, id, is_taken)?;
            Some((id.clone(), part(snapshot, id, spec, ports, Vec::new())))
        });
        for (id, part) in removed.collect::<Vec<_>>() {
            self.add_part(&id, part, Vec::new());
        }
    }

    fn add_part(&mut self, id: &ServiceId, part: Part, named: Vec<NetworkId>) {
        let (ids, are_free) = self.entries.add(part);
        self.is_ambiguous |= !are_free;
        self.parts.insert(id.clone(), KnownPart { ids, named });
    }

    fn add_container(&mut self, snapshot: &ClusterSnapshot, container: &AttachedContainer) {
        if let Some(member) = members::of_container(snapshot, container) {
            let known = self.entries.members.insert(member.id.clone(), member.into());
            self.is_ambiguous |= known.is_some();
        }
    }

    fn remove_service(&mut self, id: &ServiceId) {
        if let Some(part) = self.parts.remove(id) {
            self.entries.remove(&part.ids);
        }
    }

    /// Notes whether a service was removed and still has tasks.
    fn note_removed(&mut self, snapshot: &ClusterSnapshot, id: &ServiceId) {
        if !snapshot.services.contains_key(id) && snapshot.tasks_of(id).next().is_some() {
            self.removed.insert(id.clone());
        }
    }
}

impl<'a> Stale<'a> {
    /// Notes the services whose records, specs, tasks or statuses differ.
    fn note_services(&mut self, before: &'a ClusterSnapshot, snapshot: &'a ClusterSnapshot) {
        let services = differing(&before.services, &snapshot.services, Arc::ptr_eq);
        self.services.extend(services.into_iter().map(|(id, _)| id));
        let specs = differing(&before.specs, &snapshot.specs, Arc::ptr_eq);
        self.services.extend(specs.into_iter().map(|((id, _), _)| id));
        let tasks = differing(&before.tasks, &snapshot.tasks, Arc::ptr_eq);
        let statuses = differing(&before.statuses, &snapshot.statuses, Arc::ptr_eq);
        for id in tasks.into_iter().map(|(id, _)| id).chain(statuses.into_iter().map(|(id, _)| id)) {
            let states = [before, snapshot].into_iter().filter_map(|state| state.tasks.get(id));
            self.services.extend(states.map(|task| &task.service_id));
        }
    }
}

/// Whether both snapshots have the same nodes in the same states.
fn has_same_nodes(one: &ClusterSnapshot, other: &ClusterSnapshot) -> bool {
    are_same(&one.nodes, &other.nodes) && are_same(&one.liveness, &other.liveness)
}

fn are_same<K: Ord, T>(one: &Shared<BTreeMap<K, Stored<T>>>, other: &Shared<BTreeMap<K, Stored<T>>>) -> bool {
    differing(one, other, Arc::ptr_eq).is_empty()
}

#[cfg(test)]
mod tests;
