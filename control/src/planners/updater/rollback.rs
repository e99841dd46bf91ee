//! The automatic rollback to a service's previous spec.
//!
//! Invariants: a rollback is a write of the spec like any other, with a version of its own; it
//! restores the previous ports, which are claimed and released in the same transaction; after it
//! there is no previous spec.
//!
//! Left to others: the manual rollback (the API, which swaps the two specs).

use mesh_state::Timestamp;
use mesh_state::service::{Service, UpdateStatus};
use mesh_state::spec::PortConfig;
use thiserror::Error;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};
use crate::slots::outdated::next_version;
use crate::slots::ports::{self, PortError};
use crate::slots::references::{self, ReferenceError};

/// Why a service can't be rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RollbackError {
    /// It was never updated, or was rolled back already.
    #[error("it does not have a previous spec")]
    NoPreviousSpec,
    /// Another service took a port that the previous spec publishes.
    #[error("its previous ports are taken: {0}")]
    Ports(PortError),
    /// A secret or config of the previous spec was removed.
    #[error("what its previous spec refers to was removed: {0}")]
    References(ReferenceError),
}

/// Adds to `plan` the writes that return `service` to its previous spec, with `status` as its
/// update status.
///
/// # Errors
/// [`RollbackError`]; `plan` is unchanged then.
pub fn plan(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    service: &Stored<Service>,
    status: UpdateStatus,
    plan: &mut Plan,
) -> Result<(), RollbackError> {
    let spec = service.previous_spec.clone().ok_or(RollbackError::NoPreviousSpec)?;
    references::check(snapshot, &spec).map_err(RollbackError::References)?;
    let wanted = spec.endpoint_spec.as_ref().map(|endpoint| endpoint.ports.as_slice()).unwrap_or_default();
    let ports =
        ports::resolve(snapshot, Some(&service.id), wanted, &service.ports).map_err(RollbackError::Ports)?;
    move_claims(snapshot, service, &ports, plan);
    plan.reasons.push(format!("service {}: {}", service.spec.name, status.message));
    let rolled_back = Service {
        spec,
        spec_version: next_version(snapshot, service),
        previous_spec: None,
        previous_spec_version: None,
        registry_auth: service.previous_registry_auth.clone(),
        previous_registry_auth: None,
        ports,
        updated_at: now,
        update_status: Some(status),
        ..service.value.clone()
    };
    plan.actions.push(Action::UpdateService { service: rolled_back, expected: service.mod_revision });
    Ok(())
}

fn move_claims(snapshot: &ClusterSnapshot, service: &Service, wanted: &[PortConfig], plan: &mut Plan) {
    let (before, then) = (ports::claims(&service.ports), ports::claims(wanted));
    for (protocol, port) in before.difference(&then) {
        if let Some(claim) = snapshot.ports.get(&(protocol.to_string(), *port)) {
            let (protocol, port) = (*protocol, *port);
            plan.actions.push(Action::ReleasePort { protocol, port, expected: claim.mod_revision });
        }
    }
    for (protocol, port) in then.difference(&before) {
        let (protocol, port) = (*protocol, *port);
        // An earlier plan that was committed only in part has claimed it; if another service had,
        // that was a clash above.
        if snapshot.ports.contains_key(&(protocol.to_string(), port)) {
            continue;
        }
        plan.actions.push(Action::ClaimPort { protocol, port, service: service.id.clone() });
    }
}
