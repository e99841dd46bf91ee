//! Checks the form of references to secrets and configs, whether or not the objects exist. Pure, in
//! Swarm's words where it has any.

use std::collections::BTreeMap;

use mesh_state::dependency::DependencyKind;
use mesh_state::spec::{ContainerSpec, PublishMode, Reference, ServiceSpec};
use thiserror::Error;

use super::INGRESS_PORTS_MAX;
use crate::slots::references::of_spec;

/// Why a reference is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum MalformedReference {
    /// Its id or name is missing.
    #[error("malformed {0} reference")]
    Unnamed(DependencyKind),
    /// It has no target file.
    #[error("malformed {0} reference, no target provided")]
    NoTarget(DependencyKind),
    /// Its target file has no name.
    #[error("malformed file {0} reference, invalid target file name provided")]
    TargetName(DependencyKind),
    /// Owner or group isn't a number.
    #[error("{kind} reference '{name}': owner '{uid}' and group '{gid}' must be numbers (or empty for 0)")]
    Owner {
        /// Secret or config.
        kind: DependencyKind,
        /// The name that the reference gives for the id.
        name: String,
        /// The owner given.
        uid: String,
        /// The group given.
        gid: String,
    },
    /// Two references have the same target path.
    #[error("{kind} references '{first}' and '{second}' have a conflicting target: '{target}'")]
    Conflict {
        /// The kind of the second reference.
        kind: DependencyKind,
        /// The name in the first reference.
        first: String,
        /// The name in the second reference.
        second: String,
        /// The target of both.
        target: String,
    },
    /// There are more claims than a transaction can write.
    #[error(
        "ContainerSpec: {count} ingress ports, secrets and configs together are too many: at most {INGRESS_PORTS_MAX} a service"
    )]
    TooMany {
        /// The number of claims.
        count: usize,
    },
}

/// Checks a spec's references.
///
/// # Errors
/// The first mistake.
pub(super) fn check(spec: &ServiceSpec, container: &ContainerSpec) -> Result<(), MalformedReference> {
    let mut taken = BTreeMap::new();
    for reference in container.references() {
        let path = path_of(&reference)?;
        if let Some(first) = taken.insert(path, reference.name) {
            return Err(MalformedReference::Conflict {
                kind: reference.kind,
                first: first.to_owned(),
                second: reference.name.to_owned(),
                target: reference.file.map(|file| file.name.clone()).unwrap_or_default(),
            });
        }
    }
    let references = of_spec(spec).len();
    if references == 0 {
        return Ok(());
    }
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    let ingress = ports.filter(|port| port.publish_mode == PublishMode::Ingress).count();
    let count = ingress + references;
    if count > INGRESS_PORTS_MAX { Err(MalformedReference::TooMany { count }) } else { Ok(()) }
}

fn path_of(reference: &Reference<'_>) -> Result<String, MalformedReference> {
    let kind = reference.kind;
    if reference.id.is_empty() || reference.name.is_empty() {
        return Err(MalformedReference::Unnamed(kind));
    }
    let file = reference.file.ok_or(MalformedReference::NoTarget(kind))?;
    if file.owner().is_none() {
        return Err(MalformedReference::Owner {
            kind,
            name: reference.name.to_owned(),
            uid: file.uid.clone(),
            gid: file.gid.clone(),
        });
    }
    let path = (!file.name.is_empty()).then(|| reference.path()).flatten();
    path.ok_or(MalformedReference::TargetName(kind))
}

#[cfg(test)]
mod tests {
    use mesh_state::spec::{ConfigReference, FileTarget, SecretReference};

    use super::*;
    use crate::fixtures;

    fn secret(name: &str, target: &str) -> SecretReference {
        let file = FileTarget { name: target.to_owned(), ..FileTarget::default() };
        SecretReference {
            file: Some(file),
            secret_id: name.into(),
            secret_name: name.to_owned(),
            ..SecretReference::default()
        }
    }

    fn config(name: &str, target: &str) -> ConfigReference {
        let SecretReference { file, secret_id, secret_name, extra } = secret(name, target);
        ConfigReference { file, config_id: secret_id, config_name: secret_name, extra }
    }

    fn said(secrets: Vec<SecretReference>, configs: Vec<ConfigReference>) -> String {
        let mut spec = fixtures::service("web", 1).spec;
        let container = spec.task_template.container_spec.get_or_insert_default();
        (container.secrets, container.configs) = (secrets, configs);
        let container = container.clone();
        check(&spec, &container).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn one_object_may_have_several_targets_and_a_target_one_object() {
        assert_eq!(said(vec![secret("a", "x"), secret("a", "y")], vec![config("c", "x")]), "");
        let twice = "secret references 'a' and 'b' have a conflicting target: 'x'";
        assert_eq!(said(vec![secret("a", "x"), secret("b", "x")], vec![]), twice);
        let spelled = "secret references 'a' and 'b' have a conflicting target: '/run/secrets/x'";
        assert_eq!(said(vec![secret("a", "x"), secret("b", "/run/secrets/x")], vec![]), spelled);
        let across = "config references 'a' and 'c' have a conflicting target: 'run/secrets/x'";
        assert_eq!(said(vec![secret("a", "x")], vec![config("c", "run/secrets/x")]), across);
    }

    #[test]
    fn missing_parts_are_refused_in_swarms_words() {
        let with = |change: fn(&mut SecretReference)| {
            let mut reference = secret("a", "x");
            change(&mut reference);
            said(vec![reference], vec![])
        };
        assert_eq!(with(|it| it.secret_id = "".into()), "malformed secret reference");
        assert_eq!(with(|it| it.secret_name.clear()), "malformed secret reference");
        assert_eq!(with(|it| it.file = None), "malformed secret reference, no target provided");
        let name = "malformed file secret reference, invalid target file name provided";
        assert_eq!(said(vec![secret("a", "")], vec![]), name);
        assert_eq!(said(vec![secret("a", "../..")], vec![]), name);
        let owner = with(|it| it.file.as_mut().unwrap().uid = "www-data".to_owned());
        assert!(owner.contains("'www-data'") && owner.contains("must be numbers"), "saw {owner}");
    }

    #[test]
    fn a_service_has_no_more_references_than_a_transaction_writes() {
        let secrets = |count: usize| (0..count).map(|n| secret(&n.to_string(), &n.to_string())).collect();
        assert_eq!(said(secrets(INGRESS_PORTS_MAX), vec![]), "");
        assert!(said(secrets(INGRESS_PORTS_MAX + 1), vec![]).contains("are too many"), "one too many");
    }
}
