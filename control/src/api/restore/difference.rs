//! What differs between a cluster and a backup, object by object. Pure.
//!
//! Tasks, their states and addresses, which nodes there are, their roles, and everything of the CA
//! are not compared: they are the cluster's present, which a restore leaves alone.

use mesh_state::cluster::Cluster;
use mesh_state::dependency::{Dependency, DependencyKind};
use mesh_state::ids::DependencyId;
use mesh_state::network::Network;
use mesh_state::node::{Node, NodeSpec};
use mesh_state::service::Service;
use serde::Serialize;

use super::saved::Saved;
use crate::feed::snapshot::{ClusterSnapshot, Stored, Versioned};

/// One object that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Change {
    kind: &'static str,
    name: String,
    what: What,
}

/// What a restore does with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Created,
    Changed,
    Removed,
}

/// Everything that differs.
pub(super) fn difference(live: &ClusterSnapshot, saved: &Saved) -> Vec<Change> {
    let mut found = Vec::new();
    let mut add = |kind, name: &str, what| found.push(Change { kind, name: name.to_owned(), what });
    if settings(live, saved).is_some() {
        add("cluster", "settings and join tokens", What::Changed);
    }
    for (node, _) in nodes(live, saved) {
        add("node", &node.description.hostname, What::Changed);
    }
    for (kind, _, dependency) in new_dependencies(live, saved) {
        add(kind.as_str(), &dependency.name, What::Created);
    }
    for (kind, current, _) in changed_dependencies(live, saved) {
        add(kind.as_str(), &current.name, What::Changed);
    }
    for (kind, _, dependency) in extra_dependencies(live, saved) {
        add(kind.as_str(), &dependency.name, What::Removed);
    }
    for network in new_networks(live, saved) {
        add("network", &network.name, What::Created);
    }
    for network in extra_networks(live, saved) {
        add("network", &network.name, What::Removed);
    }
    for service in wanted_services(live, saved) {
        let what = if live.services.contains_key(&service.id) { What::Changed } else { What::Created };
        add("service", &service.spec.name, what);
    }
    for service in extra_services(live, saved) {
        add("service", &service.spec.name, What::Removed);
    }
    found
}

/// The cluster's record with the settings and tokens of the backup; `None` if it has them. The CA,
/// the keys that members and managers share, and the address pools stay: nodes live by them.
pub(super) fn settings(live: &ClusterSnapshot, saved: &Saved) -> Option<Cluster> {
    let (live, saved) = (live.cluster.as_ref()?, saved.snapshot.cluster.as_ref().filter(|_| saved.is_own)?);
    let wanted = Cluster {
        task_history_limit: saved.task_history_limit,
        heartbeat_period_ns: saved.heartbeat_period_ns,
        node_cert_expiry_ns: saved.node_cert_expiry_ns,
        labels: saved.labels.clone(),
        worker_token: saved.worker_token.clone(),
        manager_token: saved.manager_token.clone(),
        ..live.value.clone()
    };
    (wanted != live.value).then_some(wanted)
}

/// The nodes whose labels or availability differ, with the specs that they are to have. A role
/// stays, as it costs or makes a manager.
pub(super) fn nodes<'a>(
    live: &'a ClusterSnapshot,
    saved: &'a Saved,
) -> impl Iterator<Item = (&'a Stored<Node>, NodeSpec)> {
    live.nodes.iter().filter(|_| saved.is_own).filter_map(|(id, node)| {
        let saved = saved.snapshot.nodes.get(id)?;
        let wanted = NodeSpec { role: node.spec.role, ..saved.spec.clone() };
        (wanted != node.spec).then_some((node, wanted))
    })
}

type Named<'a> = (DependencyKind, &'a DependencyId, &'a Stored<Dependency>);

/// Secrets and configs that are `here` and not `there`.
fn only_in<'a>(here: &'a ClusterSnapshot, there: &'a ClusterSnapshot) -> impl Iterator<Item = Named<'a>> {
    here.dependencies
        .iter()
        .filter(|(key, _)| !there.dependencies.contains_key(*key))
        .map(|((kind, id), dependency)| (*kind, id, dependency))
}

/// Secrets and configs that the cluster doesn't have.
pub(super) fn new_dependencies<'a>(
    live: &'a ClusterSnapshot,
    saved: &'a Saved,
) -> impl Iterator<Item = Named<'a>> {
    only_in(&saved.snapshot, live)
}

/// Secrets and configs that the backup doesn't have.
pub(super) fn extra_dependencies<'a>(
    live: &'a ClusterSnapshot,
    saved: &'a Saved,
) -> impl Iterator<Item = Named<'a>> {
    only_in(live, &saved.snapshot)
}

/// Secrets and configs whose labels differ, with their present and their saved record. Nothing else
/// of them ever changes.
pub(super) fn changed_dependencies<'a>(
    live: &'a ClusterSnapshot,
    saved: &'a Saved,
) -> impl Iterator<Item = (DependencyKind, &'a Stored<Dependency>, &'a Dependency)> {
    live.dependencies.iter().filter_map(|((kind, id), current)| {
        let saved = saved.snapshot.dependencies.get(&(*kind, id.clone()))?;
        let differs = saved.labels != current.labels || saved.extra != current.extra;
        differs.then_some((*kind, current, &saved.value))
    })
}

/// Networks that the cluster doesn't have. The ingress network is each cluster's own.
pub(super) fn new_networks<'a>(
    live: &'a ClusterSnapshot,
    saved: &'a Saved,
) -> impl Iterator<Item = &'a Network> {
    let networks = saved.snapshot.networks.values().map(|network| &network.value);
    networks.filter(|network| !network.ingress && !live.networks.contains_key(&network.id))
}

/// Networks that the backup doesn't have.
pub(super) fn extra_networks<'a>(
    live: &'a ClusterSnapshot,
    saved: &'a Saved,
) -> impl Iterator<Item = &'a Versioned<Network>> {
    let networks = live.networks.values().map(|network| &**network);
    networks.filter(|network| !network.ingress && !saved.snapshot.networks.contains_key(&network.id))
}

/// Services of the backup that the cluster doesn't have, or has with another spec.
pub(super) fn wanted_services<'a>(
    live: &'a ClusterSnapshot,
    saved: &'a Saved,
) -> impl Iterator<Item = &'a Service> {
    let services = saved.snapshot.services.values().map(|service| &service.value);
    services.filter(|service| live.services.get(&service.id).is_none_or(|live| live.spec != service.spec))
}

/// Services that the backup doesn't have.
pub(super) fn extra_services<'a>(
    live: &'a ClusterSnapshot,
    saved: &'a Saved,
) -> impl Iterator<Item = &'a Versioned<Service>> {
    let services = live.services.values().map(|service| &**service);
    services.filter(|service| !saved.snapshot.services.contains_key(&service.id))
}
