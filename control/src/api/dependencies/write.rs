//! The transactions that create, relabel and remove a secret or config. Pure, one transaction each.
//!
//! Invariants: object, name claim and sealed data are written and deleted together; an object is
//! removed only if no service refers to it, also if a service is written at the same time.

use mesh_state::Timestamp;
use mesh_state::codec;
use mesh_state::dependency::{Dependency, DependencyKind};
use mesh_state::ids::DependencyId;
use mesh_state::keys;
use mesh_state::store::{Compare, Op};

use super::spec::DependencySpec;
use crate::api::access::Transaction;
use crate::api::error::ApiError;
use crate::feed::snapshot::{ClusterSnapshot, Versioned};
use crate::slots::references;

/// Creates an object with its sealed data.
///
/// # Errors
/// Its name is taken.
pub(super) fn create(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    kind: DependencyKind,
    id: &DependencyId,
    spec: &DependencySpec,
    sealed: &[u8],
) -> Result<Transaction, ApiError> {
    if snapshot.names.contains_key(&(kind.plural().to_owned(), spec.name.clone())) {
        return Err(ApiError::Exists { kind: kind.into(), name: spec.name.clone() });
    }
    let object = Dependency {
        id: id.clone(),
        name: spec.name.clone(),
        labels: spec.labels.clone(),
        templating: spec.template_driver(kind)?,
        extra: spec.extra.clone(),
        created_at: now,
        updated_at: now,
    };
    let (key, name) = (keys::dependency(kind, id), keys::name(kind.plural(), &spec.name));
    Ok(Transaction {
        compares: vec![Compare::Absent(key.clone()), Compare::Absent(name.clone())],
        ops: vec![
            Op::put(name, codec::encode(id)?),
            Op::put(keys::sealed(kind, id), sealed.to_vec()),
            Op::put(key, codec::encode(&object)?),
        ],
    })
}

/// Changes an object's labels, for a client that read it at `version`.
///
/// # Errors
/// Another field would change; the object was written since.
pub(super) fn update(
    now: Timestamp,
    kind: DependencyKind,
    current: &Versioned<Dependency>,
    version: i64,
    spec: &DependencySpec,
    same_data: bool,
) -> Result<Transaction, ApiError> {
    let templating = spec.template_driver(kind)?;
    let same_templating = templating.is_none() || templating == current.templating;
    if spec.name != current.name || !same_data || !same_templating || spec.has_driver() {
        return Err(ApiError::Invalid("only updates to Labels are allowed".to_owned()));
    }
    if version != current.mod_revision {
        return Err(ApiError::OutOfSequence);
    }
    let object = Dependency { labels: spec.labels.clone(), updated_at: now, ..current.value.clone() };
    let key = keys::dependency(kind, &current.id);
    Ok(Transaction {
        compares: vec![Compare::ModRevision(key.clone(), version)],
        ops: vec![Op::put(key, codec::encode(&object)?)],
    })
}

/// Removes an object and its data.
///
/// # Errors
/// Services refer to it.
pub(super) fn remove(
    snapshot: &ClusterSnapshot,
    kind: DependencyKind,
    current: &Versioned<Dependency>,
) -> Result<Transaction, ApiError> {
    let users = references::users(snapshot, kind, &current.id);
    if !users.is_empty() {
        return Err(ApiError::Invalid(format!(
            "{kind} '{}' is in use by the following service{}: {}",
            current.name,
            if users.len() == 1 { "" } else { "s" },
            users.join(", ")
        )));
    }
    let key = keys::dependency(kind, &current.id);
    Ok(Transaction {
        compares: vec![
            Compare::ModRevision(key.clone(), current.mod_revision),
            Compare::NoneBelow(keys::references(kind, &current.id)),
        ],
        ops: vec![
            Op::delete(key),
            Op::delete(keys::name(kind.plural(), &current.name)),
            Op::delete(keys::sealed(kind, &current.id)),
        ],
    })
}
