//! The transactions that create, update, roll back and remove a service. Pure, one transaction
//! each.
//!
//! Invariants: an object, its name's claim, its ports' claims, its references and its spec version
//! are written together; a claim is made only if the key doesn't exist (`Absent`); an update has
//! the condition that the spec is the one that its client read. The stored spec is the one that was
//! sent, with the mode filled in.
//!
//! Left to others: tasks. The planners make them from the service; the reaper deletes specs that no
//! task was made from.

use mesh_state::Timestamp;
use mesh_state::cluster::Sealed;
use mesh_state::codec;
use mesh_state::ids::ServiceId;
use mesh_state::keys;
use mesh_state::service::{JobStatus, Service, UpdateState, UpdateStatus};
use mesh_state::spec::{PortConfig, ServiceMode, ServiceSpec};
use mesh_state::store::{Compare, MAX_TXN_OPS, Op};

use super::networks;
use crate::api::access::Transaction;
use crate::api::error::{ApiError, ObjectKind};
use crate::api::validate;
use crate::feed::snapshot::{ClusterSnapshot, Versioned};
use crate::slots::outdated::{next_version, replaces_tasks};
use crate::slots::ports;
use crate::slots::references;

/// The kind under which services claim their names.
pub(crate) const NAME_KIND: &str = "services";

/// Creates a service.
///
/// # Errors
/// The spec is invalid; its name or a port is taken.
pub(crate) fn create(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    id: &ServiceId,
    mut spec: ServiceSpec,
    registry_auth: Option<Sealed>,
) -> Result<Transaction, ApiError> {
    spec.mode = spec.mode.filled();
    validate::service_spec(&spec)?;
    references::check(snapshot, &spec)?;
    if is_name_taken(snapshot, &spec.name) {
        return Err(ApiError::NameTaken { kind: ObjectKind::Service, name: spec.name });
    }
    let mut transaction = Transaction::default();
    networks::resolve(snapshot, None, &mut spec, &mut transaction)?;
    let first_execution = spec.mode.is_job().then_some(JobStatus { iteration: 0, last_execution: now });
    let service = Service {
        id: id.clone(),
        ports: ports::resolve(snapshot, None, asked_ports(&spec), &[])?,
        spec,
        previous_spec: None,
        spec_version: 1,
        previous_spec_version: None,
        registry_auth,
        previous_registry_auth: None,
        virtual_ips: Vec::new(),
        created_at: now,
        updated_at: now,
        job: first_execution,
        update_status: None,
    };
    let name_key = keys::name(NAME_KIND, &service.spec.name);
    transaction.compares.extend([Compare::Absent(keys::service(id)), Compare::Absent(name_key.clone())]);
    transaction.ops.push(Op::put(name_key, codec::encode(id)?));
    write_service(&mut transaction, snapshot, &service)?;
    move_claims(&mut transaction, id, &[], &service.ports)?;
    Ok(transaction)
}

/// Gives a service a new spec, for a client that read it at `version`.
///
/// # Errors
/// [`ApiError::OutOfSequence`] if it was written since; the spec is invalid; Swarm refuses the
/// change.
pub(crate) fn update(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    current: &Versioned<Service>,
    version: i64,
    mut spec: ServiceSpec,
    registry_auth: Option<Sealed>,
) -> Result<Transaction, ApiError> {
    spec.mode = spec.mode.filled();
    validate::service_spec(&spec)?;
    if spec.name != current.spec.name {
        return Err(ApiError::Unimplemented("renaming services is not supported"));
    }
    if kind(&spec.mode) != kind(&current.spec.mode) {
        return Err(ApiError::Unimplemented("service mode change is not allowed"));
    }
    rewrite(snapshot, now, current, version, Rewrite { spec, registry_auth, update_status: None })
}

/// Restores a service's previous spec at its user's request.
///
/// # Errors
/// [`ApiError::OutOfSequence`]; there is no previous spec; another service now has a port of it.
pub(crate) fn rollback(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    current: &Versioned<Service>,
    version: i64,
) -> Result<Transaction, ApiError> {
    let Some(previous) = current.previous_spec.clone() else {
        return Err(ApiError::Precondition(format!("service {} does not have a previous spec", current.id)));
    };
    let status = UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: now,
        completed_at: None,
        message: "manually requested rollback".to_owned(),
        batch_at: None,
    };
    let registry_auth = current.previous_registry_auth.clone();
    let wanted = Rewrite { spec: previous, registry_auth, update_status: Some(status) };
    rewrite(snapshot, now, current, version, wanted)
}

/// Gives the cluster the service of a backup: as an update of the one with its id, so that its
/// tasks are replaced as its update settings say, or as a new one with that id. A job that was
/// removed is executed again.
///
/// # Errors
/// A secret, config or network of it doesn't exist; its name or a port is taken.
pub(crate) fn restore(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    saved: &Service,
) -> Result<Transaction, ApiError> {
    let (mut spec, registry_auth) = (saved.spec.clone(), saved.registry_auth.clone());
    if let Some(current) = snapshot.services.get(&saved.id) {
        let wanted = Rewrite { spec, registry_auth, update_status: None };
        return rewrite(snapshot, now, current, current.mod_revision, wanted);
    }
    references::check(snapshot, &spec)?;
    if is_name_taken(snapshot, &spec.name) {
        return Err(ApiError::NameTaken { kind: ObjectKind::Service, name: spec.name });
    }
    let mut transaction = Transaction::default();
    networks::resolve(snapshot, None, &mut spec, &mut transaction)?;
    let service = Service {
        // Automatic ports are the ones that it had, if they are free.
        ports: ports::resolve(snapshot, Some(&saved.id), asked_ports(&spec), &saved.ports)?,
        spec,
        spec_version: next_version(snapshot, saved),
        previous_spec: None,
        previous_spec_version: None,
        registry_auth,
        previous_registry_auth: None,
        // Others may have them by now: the leader gives new ones.
        virtual_ips: Vec::new(),
        updated_at: now,
        job: saved.job.map(|job| JobStatus { iteration: job.iteration + 1, last_execution: now }),
        update_status: None,
        ..saved.clone()
    };
    let name_key = keys::name(NAME_KIND, &service.spec.name);
    let absent = [Compare::Absent(keys::service(&service.id)), Compare::Absent(name_key.clone())];
    transaction.compares.extend(absent);
    transaction.ops.push(Op::put(name_key, codec::encode(&service.id)?));
    write_service(&mut transaction, snapshot, &service)?;
    move_claims(&mut transaction, &service.id, &[], &service.ports)?;
    refuse_too_many_changes(&transaction)?;
    Ok(transaction)
}

/// Removes a service, its claims and its references.
///
/// # Errors
/// None of its own.
pub(crate) fn remove(
    snapshot: &ClusterSnapshot,
    current: &Versioned<Service>,
) -> Result<Transaction, ApiError> {
    let mut transaction = Transaction {
        compares: vec![Compare::ModRevision(keys::service(&current.id), current.mod_revision)],
        ops: vec![
            Op::delete(keys::service(&current.id)),
            Op::delete(keys::name(NAME_KIND, &current.spec.name)),
        ],
    };
    for (protocol, port) in ports::claims(&current.ports) {
        transaction.ops.push(Op::delete(keys::port(protocol, port)));
    }
    let (_, given_back) = references::settle(snapshot, &current.id, None)?;
    transaction.ops.extend(given_back);
    Ok(transaction)
}

/// Which of the modes it is: replicated, global or job.
fn kind(mode: &ServiceMode) -> [bool; 3] {
    [mode.global.is_some(), mode.replicated_job.is_some(), mode.global_job.is_some()]
}

/// Whether another service has this name.
pub(crate) fn is_name_taken(snapshot: &ClusterSnapshot, name: &str) -> bool {
    snapshot.names.contains_key(&(NAME_KIND.to_owned(), name.to_owned()))
}

/// The values of a service after a write.
struct Rewrite {
    spec: ServiceSpec,
    registry_auth: Option<Sealed>,
    update_status: Option<UpdateStatus>,
}

fn rewrite(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    current: &Versioned<Service>,
    version: i64,
    wanted: Rewrite,
) -> Result<Transaction, ApiError> {
    let Rewrite { mut spec, registry_auth, update_status } = wanted;
    if !knows_spec(snapshot, current, version) {
        return Err(ApiError::OutOfSequence);
    }
    references::check(snapshot, &spec)?;
    let mut transaction = Transaction {
        compares: vec![Compare::ModRevision(keys::service(&current.id), current.mod_revision)],
        ops: Vec::new(),
    };
    networks::resolve(snapshot, Some(&current.spec), &mut spec, &mut transaction)?;
    let update_status = update_status.or_else(|| status_after(snapshot, now, current, &spec));
    let service = Service {
        id: current.id.clone(),
        ports: ports::resolve(snapshot, Some(&current.id), asked_ports(&spec), &current.ports)?,
        spec,
        previous_spec: Some(current.spec.clone()),
        spec_version: next_version(snapshot, current),
        previous_spec_version: Some(current.spec_version),
        registry_auth,
        previous_registry_auth: current.registry_auth.clone(),
        virtual_ips: current.virtual_ips.clone(),
        created_at: current.created_at,
        updated_at: now,
        // Each write of a job's spec executes it again.
        job: current.job.map(|job| JobStatus { iteration: job.iteration + 1, last_execution: now }),
        update_status: update_status.filter(|_| current.job.is_none()),
    };
    write_service(&mut transaction, snapshot, &service)?;
    move_claims(&mut transaction, &current.id, &current.ports, &service.ports)?;
    refuse_too_many_changes(&transaction)?;
    Ok(transaction)
}

/// Whether a client that read the service at `version` has its present spec. The updater writes the
/// service, too, which doesn't concern its user; each write of the spec writes a spec version with
/// it, at the same revision.
fn knows_spec(snapshot: &ClusterSnapshot, current: &Versioned<Service>, version: i64) -> bool {
    let key = (current.id.clone(), current.spec_version);
    let written = snapshot.specs.get(&key).map_or(current.mod_revision, |spec| spec.mod_revision);
    (written..=current.mod_revision).contains(&version)
}

/// The update status after a user wrote `spec`. The updater begins an update when it finds a task
/// of an older spec; in a service without tasks it would never find one, and an update in progress
/// must not lose its status by a change of labels.
fn status_after(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    current: &Versioned<Service>,
    spec: &ServiceSpec,
) -> Option<UpdateStatus> {
    if !replaces_tasks(&current.spec, spec) {
        return current.update_status.clone().filter(|status| status.state.goes_on());
    }
    let wants_tasks = spec.mode.replicas().is_none_or(|replicas| replicas > 0);
    let has_none = snapshot.tasks_of(&current.id).next().is_none();
    (wants_tasks && has_none).then(|| UpdateStatus::begun(now))
}

/// Refuses a change that exceeds a transaction. A service may hold nearly as many claims as one
/// transaction may write, and an update also releases old ones. A user who changes that much at
/// once can do it in two steps; so can one who rolls it back.
fn refuse_too_many_changes(transaction: &Transaction) -> Result<(), ApiError> {
    let writes = transaction.ops.len().max(transaction.compares.len());
    if writes <= MAX_TXN_OPS {
        return Ok(());
    }
    Err(ApiError::BadRequest(format!(
        "the update changes too many published ports, secrets and configs at once ({writes} writes, at most {MAX_TXN_OPS}): make it in two \
         steps, the first without some of the new ones"
    )))
}

fn write_service(
    transaction: &mut Transaction,
    snapshot: &ClusterSnapshot,
    service: &Service,
) -> Result<(), ApiError> {
    let spec_key = keys::spec(&service.id, service.spec_version);
    transaction.compares.push(Compare::Absent(spec_key.clone()));
    transaction.ops.push(Op::put(spec_key, codec::encode(&service.spec)?));
    transaction.ops.push(Op::put(keys::service(&service.id), codec::encode(service)?));
    let (compares, ops) = references::settle(snapshot, &service.id, Some(&service.spec))?;
    transaction.compares.extend(compares);
    transaction.ops.extend(ops);
    Ok(())
}

/// Releases the claims that the service no longer needs, and makes the new ones if they are free.
fn move_claims(
    transaction: &mut Transaction,
    id: &ServiceId,
    held: &[PortConfig],
    wanted: &[PortConfig],
) -> Result<(), ApiError> {
    let (held, wanted) = (ports::claims(held), ports::claims(wanted));
    for (protocol, port) in held.difference(&wanted) {
        transaction.ops.push(Op::delete(keys::port(*protocol, *port)));
    }
    for (protocol, port) in wanted.difference(&held) {
        let key = keys::port(*protocol, *port);
        transaction.compares.push(Compare::Absent(key.clone()));
        transaction.ops.push(Op::put(key, codec::encode(id)?));
    }
    Ok(())
}

fn asked_ports(spec: &ServiceSpec) -> &[PortConfig] {
    spec.endpoint_spec.as_ref().map_or(&[], |endpoint| &endpoint.ports)
}
