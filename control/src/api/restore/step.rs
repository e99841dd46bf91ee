//! The next step of a restore onto a cluster that runs. Pure.
//!
//! Invariants: a step is one transaction on one object, valid by itself, under compares on what it
//! was decided on; it brings the cluster nearer to the backup, so that steps come to an end; no
//! step writes a task, or a service whose spec is the backup's. The order is the one in which an
//! operator would go: what is needed first, what is no longer needed last.

use mesh_state::Timestamp;
use mesh_state::codec;
use mesh_state::dependency::{Dependency, DependencyKind};
use mesh_state::ids::DependencyId;
use mesh_state::keys;
use mesh_state::node::Node;
use mesh_state::store::{Compare, Op};

use super::difference::{
    changed_dependencies, extra_dependencies, extra_networks, extra_services, new_dependencies, new_networks,
    nodes, settings, wanted_services,
};
use super::saved::Saved;
use crate::api::access::Transaction;
use crate::api::error::ApiError;
use crate::api::networks;
use crate::api::services;
use crate::feed::snapshot::{ClusterSnapshot, Versioned};
use crate::slots::references;

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Write this.
    Write(Transaction),
    /// No step is possible; these differences stay, each with its reason.
    Done(Vec<String>),
}

/// An attempt at one object, with its name for people.
type Attempt = (String, Result<Transaction, ApiError>);
type Attempts<'a> = Box<dyn Iterator<Item = Attempt> + 'a>;
type Stage = for<'a> fn(&'a ClusterSnapshot, &'a Saved, Timestamp) -> Attempts<'a>;

/// The stages, in order. What one can't do yet, a later one may make possible: each step begins
/// with the first stage again.
const STAGES: [Stage; 9] = [
    the_settings,
    of_nodes,
    create_dependencies,
    relabel_dependencies,
    remove_services,
    create_networks,
    write_services,
    remove_networks,
    remove_dependencies,
];

/// The next step towards `saved`.
pub(super) fn next(live: &ClusterSnapshot, saved: &Saved, now: Timestamp) -> Next {
    let mut left = Vec::new();
    for (name, attempt) in STAGES.iter().flat_map(|stage| stage(live, saved, now)) {
        match attempt {
            Ok(transaction) => return Next::Write(transaction),
            Err(error) => left.push(format!("{name}: {error}")),
        }
    }
    Next::Done(left)
}

/// The write of a record over the one at revision `expected`.
fn rewrite<T: serde::Serialize>(key: String, value: &T, expected: i64) -> Result<Transaction, ApiError> {
    let encoded = codec::encode(value)?;
    let stands = Compare::ModRevision(key.clone(), expected);
    Ok(Transaction { compares: vec![stands], ops: vec![Op::put(key, encoded)] })
}

fn the_settings<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, now: Timestamp) -> Attempts<'a> {
    let attempt = live.cluster.as_ref().zip(settings(live, saved)).map(|(current, mut wanted)| {
        wanted.updated_at = Some(now);
        ("settings".to_owned(), rewrite(keys::CLUSTER.to_owned(), &wanted, current.mod_revision))
    });
    Box::new(attempt.into_iter())
}

fn of_nodes<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, now: Timestamp) -> Attempts<'a> {
    Box::new(nodes(live, saved).map(move |(current, spec)| {
        let node = Node {
            spec,
            updated_at: now,
            spec_written_after: Some(current.mod_revision),
            ..current.value.clone()
        };
        let name = format!("node {}", current.description.hostname);
        (name, rewrite(keys::node(&current.id), &node, current.mod_revision))
    }))
}

fn create_dependencies<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, _: Timestamp) -> Attempts<'a> {
    Box::new(new_dependencies(live, saved).map(|(kind, id, wanted)| {
        let attempt = match saved.data(kind, id) {
            Some(data) => create_dependency(live, kind, wanted, data),
            None => Err(ApiError::Unavailable("the backup does not have its data".to_owned())),
        };
        (format!("{kind} {}", wanted.name), attempt)
    }))
}

/// Creates a secret or config, and takes its name from one that the backup doesn't have: that one
/// is removed once nothing refers to it.
fn create_dependency(
    live: &ClusterSnapshot,
    kind: DependencyKind,
    wanted: &Dependency,
    data: &[u8],
) -> Result<Transaction, ApiError> {
    let (key, name) = (keys::dependency(kind, &wanted.id), keys::name(kind.plural(), &wanted.name));
    let claimed = live.names.get(&(kind.plural().to_owned(), wanted.name.clone()));
    let name_stands = match claimed {
        Some(claim) => Compare::ModRevision(name.clone(), claim.mod_revision),
        None => Compare::Absent(name.clone()),
    };
    Ok(Transaction {
        compares: vec![Compare::Absent(key.clone()), name_stands],
        ops: vec![
            Op::put(name, codec::encode(&wanted.id)?),
            Op::put(keys::sealed(kind, &wanted.id), data.to_vec()),
            Op::put(key, codec::encode(wanted)?),
        ],
    })
}

fn relabel_dependencies<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, now: Timestamp) -> Attempts<'a> {
    Box::new(changed_dependencies(live, saved).map(move |(kind, current, wanted)| {
        let object = Dependency {
            labels: wanted.labels.clone(),
            extra: wanted.extra.clone(),
            updated_at: now,
            ..current.value.clone()
        };
        let key = keys::dependency(kind, &current.id);
        (format!("{kind} {}", current.name), rewrite(key, &object, current.mod_revision))
    }))
}

fn remove_services<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, _: Timestamp) -> Attempts<'a> {
    Box::new(
        extra_services(live, saved).map(|current| {
            (format!("service {}", current.spec.name), services::write::remove(live, current))
        }),
    )
}

fn create_networks<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, _: Timestamp) -> Attempts<'a> {
    Box::new(
        new_networks(live, saved)
            .map(|wanted| (format!("network {}", wanted.name), networks::write::recreate(live, wanted))),
    )
}

fn write_services<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, now: Timestamp) -> Attempts<'a> {
    Box::new(wanted_services(live, saved).map(move |wanted| {
        let attempt = saved.service(wanted);
        let attempt = attempt.and_then(|wanted| services::write::restore(live, now, &wanted));
        (format!("service {}", wanted.spec.name), attempt)
    }))
}

fn remove_networks<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, _: Timestamp) -> Attempts<'a> {
    Box::new(
        extra_networks(live, saved)
            .map(|current| (format!("network {}", current.name), networks::write::remove(live, current))),
    )
}

fn remove_dependencies<'a>(live: &'a ClusterSnapshot, saved: &'a Saved, _: Timestamp) -> Attempts<'a> {
    Box::new(extra_dependencies(live, saved).map(|(kind, id, current)| {
        (format!("{kind} {}", current.name), remove_dependency(live, kind, id, current))
    }))
}

/// Removes a secret or config, with its name unless another one has that by now.
fn remove_dependency(
    live: &ClusterSnapshot,
    kind: DependencyKind,
    id: &DependencyId,
    current: &Versioned<Dependency>,
) -> Result<Transaction, ApiError> {
    let users = references::users(live, kind, id);
    if !users.is_empty() {
        return Err(ApiError::Conflict(format!("it is in use by the services {}", users.join(", "))));
    }
    let key = keys::dependency(kind, id);
    let mut removal = Transaction {
        compares: vec![
            Compare::ModRevision(key.clone(), current.mod_revision),
            Compare::NoneBelow(keys::references(kind, id)),
        ],
        ops: vec![Op::delete(key), Op::delete(keys::sealed(kind, id))],
    };
    let claim = live.names.get(&(kind.plural().to_owned(), current.name.clone()));
    if let Some(claim) = claim.filter(|claim| claim.value == id.as_str()) {
        let name = keys::name(kind.plural(), &current.name);
        removal.compares.push(Compare::ModRevision(name.clone(), claim.mod_revision));
        removal.ops.push(Op::delete(name));
    }
    Ok(removal)
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
