//! The files of a container's secrets and configs. Pure.

use std::path::Path;

use mesh_state::ids::TaskId;
use mesh_state::spec::ContainerSpec;

use super::PlanError;
use super::extras::none_left;
use crate::task::dependencies::files::{FilePlan, OwnFile, directory};
use crate::task::docker::model::{Mount, MountType};

/// Plans the files, secrets first, each below `root`.
pub(super) fn plan(spec: &ContainerSpec, task: &TaskId, root: &Path) -> Result<Vec<FilePlan>, PlanError> {
    for secret in &spec.secrets {
        none_left("ContainerSpec.Secrets", &secret.extra)?;
    }
    for config in &spec.configs {
        none_left("ContainerSpec.Configs", &config.extra)?;
    }
    let directory = directory(root, task);
    spec.references()
        .enumerate()
        .map(|(number, reference)| {
            let field = match reference.kind {
                mesh_state::dependency::DependencyKind::Secret => "ContainerSpec.Secrets",
                mesh_state::dependency::DependencyKind::Config => "ContainerSpec.Configs",
            };
            let invalid = |what: &str| PlanError::Invalid {
                field: field.to_owned(),
                reason: format!("{} {} has {what}", reference.kind, reference.name),
            };
            let file = reference.file.ok_or_else(|| invalid("no target file"))?;
            none_left(field, &file.extra)?;
            Ok(FilePlan {
                kind: reference.kind,
                id: reference.id.clone(),
                name: reference.name.to_owned(),
                source: directory.join(number.to_string()),
                target: reference.path().ok_or_else(|| invalid("no target path"))?,
                owner: file.owner().ok_or_else(|| invalid("an owner or group that is no number"))?,
                permissions: file.permissions(),
            })
        })
        .collect()
}

/// The bind of a file of the agent's own, which the container may change: it is this task's alone.
pub(super) fn bind(file: &OwnFile) -> String {
    format!("{}:{}", file.source.display(), file.target)
}

/// The bind mount of a file.
pub(super) fn mount(file: &FilePlan) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(file.source.to_string_lossy().into_owned()),
        target: Some(file.target.clone()),
        read_only: Some(true),
        ..Mount::default()
    }
}
