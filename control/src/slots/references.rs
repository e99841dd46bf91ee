//! The secrets and configs that a service refers to. Pure.
//!
//! Invariant: after a transaction with [`settle`]'s writes, the references stored for a service are
//! those of its spec. They are written and deleted with the spec, in one transaction that also
//! demands that the secrets and configs exist; one that is referred to can't be removed.

use std::collections::BTreeSet;

use mesh_state::codec::{self, CodecError};
use mesh_state::dependency::DependencyKind;
use mesh_state::ids::{DependencyId, ServiceId};
use mesh_state::keys;
use mesh_state::spec::{ContainerSpec, Reference, ServiceSpec};
use mesh_state::store::{Compare, Op};
use thiserror::Error;

use crate::feed::snapshot::ClusterSnapshot;

/// A kind and an id.
pub type Named = (DependencyKind, DependencyId);

/// Why the references of a spec are refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReferenceError {
    /// Some of the secrets or configs don't exist (Swarm's words).
    #[error("{kind}{} not found: {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))]
    NotFound {
        /// Secrets or configs.
        kind: DependencyKind,
        /// The names of the missing secrets or configs.
        names: Vec<String>,
    },
    /// The id and the name of a reference belong to two objects.
    #[error("{kind} reference {id} is named '{given}', but that {kind}'s name is '{real}'")]
    Misnamed {
        /// Secret or config.
        kind: DependencyKind,
        /// The id that the spec names.
        id: DependencyId,
        /// The name in the reference.
        given: String,
        /// The name of the object with that id.
        real: String,
    },
}

/// The secrets and configs that a spec refers to, each once.
pub fn of_spec(spec: &ServiceSpec) -> BTreeSet<Named> {
    let container = spec.task_template.container_spec.iter();
    container.flat_map(ContainerSpec::references).map(|it| (it.kind, it.id.clone())).collect()
}

/// Checks that everything that `spec` refers to exists, under the name in the reference.
///
/// # Errors
/// [`ReferenceError`]
pub fn check(snapshot: &ClusterSnapshot, spec: &ServiceSpec) -> Result<(), ReferenceError> {
    let references: Vec<Reference<'_>> =
        spec.task_template.container_spec.iter().flat_map(ContainerSpec::references).collect();
    let stored = |it: &Reference<'_>| snapshot.dependencies.get(&(it.kind, it.id.clone()));
    for kind in DependencyKind::ALL {
        let of_kind = references.iter().filter(|it| it.kind == kind && stored(it).is_none());
        let mut names: Vec<String> = of_kind.map(|it| it.name.to_owned()).collect();
        // A spec names an object twice if it mounts it at two targets.
        names.dedup();
        if !names.is_empty() {
            return Err(ReferenceError::NotFound { kind, names });
        }
    }
    for it in &references {
        if let Some(found) = stored(it).filter(|found| found.name != it.name) {
            let (given, real) = (it.name.to_owned(), found.name.clone());
            return Err(ReferenceError::Misnamed { kind: it.kind, id: it.id.clone(), given, real });
        }
    }
    Ok(())
}

/// Adds the writes that make the stored references of `service` those of `spec`, or delete them all
/// when the service is removed.
///
/// # Errors
/// None in practice: an id can always be encoded.
pub fn settle(
    snapshot: &ClusterSnapshot,
    service: &ServiceId,
    spec: Option<&ServiceSpec>,
) -> Result<(Vec<Compare>, Vec<Op>), CodecError> {
    let wanted = spec.map(of_spec).unwrap_or_default();
    let held: BTreeSet<Named> = snapshot
        .references
        .iter()
        .filter(|(_, _, holder)| holder == service)
        .map(|(kind, id, _)| (*kind, id.clone()))
        .collect();
    let (mut compares, mut ops) = (Vec::new(), Vec::new());
    for (kind, id) in wanted.difference(&held) {
        compares.push(Compare::Exists(keys::dependency(*kind, id)));
        ops.push(Op::put(keys::reference(*kind, id, service), codec::encode(service)?));
    }
    for (kind, id) in held.difference(&wanted) {
        ops.push(Op::delete(keys::reference(*kind, id, service)));
    }
    Ok((compares, ops))
}

/// Names of the services that refer to a secret or config, in order.
pub fn users(snapshot: &ClusterSnapshot, kind: DependencyKind, id: &DependencyId) -> Vec<String> {
    let first = (kind, id.clone(), ServiceId::default());
    let holders = snapshot.references.range(first..).take_while(|(k, i, _)| (*k, i) == (kind, id));
    let mut names: Vec<String> = holders
        .map(|(_, _, service)| {
            let stored = snapshot.services.get(service);
            stored.map_or_else(|| service.to_string(), |stored| stored.spec.name.clone())
        })
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use mesh_state::service::{Service, UpdateState, UpdateStatus};
    use mesh_state::spec::SecretReference;

    use super::*;
    use crate::fixtures::{self, World};
    use crate::leader::commit::transactions;
    use crate::plan::{Action, Plan};
    use crate::planners::updater::rollback;

    fn referring(names: &[&str]) -> ServiceSpec {
        let mut spec = fixtures::service("web", 1).spec;
        let secrets = names.iter().map(|name| SecretReference {
            secret_id: (*name).into(),
            secret_name: (*name).to_owned(),
            ..SecretReference::default()
        });
        spec.task_template.container_spec.get_or_insert_default().secrets = secrets.collect();
        spec
    }

    fn world(existing: &[&str], held: &[&str]) -> World {
        let mut world = World::new();
        for name in existing {
            world.put_dependency(DependencyKind::Secret, &fixtures::dependency(name));
        }
        for id in held {
            let key = keys::reference(DependencyKind::Secret, &(*id).into(), &"web".into());
            world.put(key, &"web");
        }
        world
    }

    #[test]
    fn new_references_are_written_and_former_ones_deleted() {
        let world = world(&["a", "b", "c"], &["a", "b"]);
        let key = |id: &str| keys::reference(DependencyKind::Secret, &id.into(), &"web".into());
        // Two targets of one secret are one reference.
        let spec = referring(&["b", "c", "c"]);
        let (compares, ops) = settle(&world.snapshot, &"web".into(), Some(&spec)).unwrap();
        assert_eq!(compares, [Compare::Exists(keys::dependency(DependencyKind::Secret, &"c".into()))]);
        let taken = Op::put(key("c"), codec::encode(&"web").unwrap());
        assert_eq!(ops, [taken, Op::delete(key("a"))]);
        let (_, ops) = settle(&world.snapshot, &"web".into(), None).unwrap();
        assert_eq!(ops, [Op::delete(key("a")), Op::delete(key("b"))], "a removed service");
        let (compares, ops) = settle(&world.snapshot, &"other".into(), None).unwrap();
        assert!(compares.is_empty() && ops.is_empty(), "another service has no references");
    }

    #[test]
    fn missing_objects_are_named_in_swarms_words() {
        let world = world(&["a"], &[]);
        let said = |names: &[&str]| {
            check(&world.snapshot, &referring(names)).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(said(&["a"]), "");
        assert_eq!(said(&["a", "b"]), "secret not found: b");
        assert_eq!(said(&["b", "b"]), "secret not found: b");
        assert_eq!(said(&["b", "c"]), "secrets not found: b, c");
        let mut spec = referring(&["a"]);
        spec.task_template.container_spec.as_mut().unwrap().secrets[0].secret_name = "x".to_owned();
        let said = check(&world.snapshot, &spec).unwrap_err().to_string();
        assert_eq!(said, "secret reference a is named 'x', but that secret's name is 'a'");
    }

    #[test]
    fn the_leaders_writes_move_references_too() {
        let world = world(&["a", "b"], &["a"]);
        let service = Service { spec: referring(&["b"]), ..fixtures::service("web", 1) };
        let action = Action::UpdateService { service, expected: 1 };
        let fence = Compare::Absent("fence".to_owned());
        let written = transactions(&[action], &world.snapshot, &fence).unwrap().remove(0);
        let key = |id: &str| keys::reference(DependencyKind::Secret, &id.into(), &"web".into());
        let exists = Compare::Exists(keys::dependency(DependencyKind::Secret, &"b".into()));
        assert!(written.compares.contains(&exists), "the secret may be gone: {:?}", written.compares);
        assert!(written.ops.contains(&Op::delete(key("a"))), "the old reference stays: {:?}", written.ops);
        assert!(written.ops.iter().any(|op| matches!(op, Op::Put { key: at, .. } if *at == key("b"))));
    }

    #[test]
    fn an_automatic_rollback_to_a_removed_secret_is_refused_with_the_reason() {
        let mut world = world(&[], &[]);
        let gone = Some(referring(&["a"]));
        world.put_service(&Service { previous_spec: gone, ..fixtures::service("web", 1) });
        let status = UpdateStatus {
            state: UpdateState::RollbackStarted,
            started_at: world.now,
            completed_at: None,
            message: String::new(),
            batch_at: None,
        };
        let service = &world.snapshot.services[&"web".into()];
        let mut plan = Plan::default();
        let refused = rollback::plan(world.now, &world.snapshot, service, status, &mut plan);
        let error = refused.expect_err("a rollback to a removed secret").to_string();
        assert_eq!(error, "what its previous spec refers to was removed: secret not found: a");
        assert!(plan.actions.is_empty(), "planned {:?}", plan.actions);
    }

    #[test]
    fn users_are_the_services_by_name() {
        let mut world = world(&["a"], &["a"]);
        world.put_service(&fixtures::service("web", 1));
        assert_eq!(users(&world.snapshot, DependencyKind::Secret, &"a".into()), ["web"]);
        assert!(
            users(&world.snapshot, DependencyKind::Config, &"a".into()).is_empty(),
            "a secret's users are no config's users"
        );
    }
}
