//! A container's references to secrets and configs, in Docker's spelling.

use serde::{Deserialize, Serialize};

use super::Extra;
use crate::dependency::DependencyKind;
use crate::ids::DependencyId;

/// The permission bits of a file whose reference sets none, as in Swarm.
const DEFAULT_MODE: u32 = 0o444;

/// Docker's `SecretReference`: a service's use of a secret.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SecretReference {
    /// The file in which the task finds the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
    /// The id of the secret; it decides.
    #[serde(rename = "SecretID")]
    pub secret_id: DependencyId,
    /// The name that the secret had when the client looked it up.
    pub secret_name: String,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Docker's `ConfigReference`: a service's use of a config.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConfigReference {
    /// The file in which the task finds the config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
    /// The id of the config; it decides.
    #[serde(rename = "ConfigID")]
    pub config_id: DependencyId,
    /// The name that the config had when the client looked it up.
    pub config_name: String,
    /// All other fields that the client sent (`Runtime`).
    #[serde(flatten)]
    pub extra: Extra,
}

/// The path, owner and mode of a secret or config in a task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FileTarget {
    /// Its path, absolute or below the kind's directory.
    pub name: String,
    /// The owner's number; empty means 0.
    #[serde(rename = "UID")]
    pub uid: String,
    /// The group's number; empty means 0.
    #[serde(rename = "GID")]
    pub gid: String,
    /// Go's file mode, of which the permission bits count; `None` means 0444.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

impl FileTarget {
    /// Owner and group by number; `None` if one isn't a number.
    pub fn owner(&self) -> Option<(u32, u32)> {
        let read = |text: &str| if text.is_empty() { Some(0) } else { text.parse().ok() };
        Some((read(&self.uid)?, read(&self.gid)?))
    }

    /// Permission bits. Like the engine, mesh sets no others (no set-user-id, no sticky bit).
    pub fn permissions(&self) -> u32 {
        self.mode.unwrap_or(DEFAULT_MODE) & 0o777
    }
}

/// A reference to a secret or to a config.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reference<'a> {
    /// Secret or config.
    pub kind: DependencyKind,
    /// The object's id.
    pub id: &'a DependencyId,
    /// The object's name.
    pub name: &'a str,
    /// The file; `None` in a malformed reference, and in one that isn't for a file.
    pub file: Option<&'a FileTarget>,
}

impl Reference<'_> {
    /// The path in the task, without `.` and `..`; `None` if there is no file or its path is empty.
    pub fn path(&self) -> Option<String> {
        let target = self.kind.target_path(&self.file?.name);
        let mut parts: Vec<&str> = Vec::new();
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                name => parts.push(name),
            }
        }
        (!parts.is_empty()).then(|| format!("/{}", parts.join("/")))
    }
}

impl<'a> From<&'a SecretReference> for Reference<'a> {
    fn from(given: &'a SecretReference) -> Self {
        let (id, name) = (&given.secret_id, given.secret_name.as_str());
        Self { kind: DependencyKind::Secret, id, name, file: given.file.as_ref() }
    }
}

impl<'a> From<&'a ConfigReference> for Reference<'a> {
    fn from(given: &'a ConfigReference) -> Self {
        let (id, name) = (&given.config_id, given.config_name.as_str());
        Self { kind: DependencyKind::Config, id, name, file: given.file.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(kind: DependencyKind, name: &str) -> Option<String> {
        let file = FileTarget { name: name.to_owned(), ..FileTarget::default() };
        Reference { kind, id: &"x".into(), name: "x", file: Some(&file) }.path()
    }

    #[test]
    fn paths_are_dockers_and_normalised() {
        for (kind, name, expected) in [
            (DependencyKind::Secret, "a", Some("/run/secrets/a")),
            (DependencyKind::Secret, "a//b/./c", Some("/run/secrets/a/b/c")),
            (DependencyKind::Secret, "../../etc/a", Some("/etc/a")),
            (DependencyKind::Secret, "/etc/a", Some("/etc/a")),
            (DependencyKind::Config, "a", Some("/a")),
            (DependencyKind::Config, "../../a", Some("/a")),
            (DependencyKind::Config, "/", None),
            (DependencyKind::Secret, "../..", None),
        ] {
            assert_eq!(path(kind, name).as_deref(), expected, "{kind} {name:?}");
        }
    }

    #[test]
    fn owners_are_numbers_and_modes_are_permissions() {
        let file = |uid: &str, mode| FileTarget { uid: uid.into(), mode, ..FileTarget::default() };
        assert_eq!(file("", None).owner(), Some((0, 0)));
        assert_eq!(file("33", None).owner(), Some((33, 0)));
        assert_eq!(file("www-data", None).owner(), None);
        assert_eq!(file("-1", None).owner(), None);
        assert_eq!(file("", None).permissions(), 0o444);
        assert_eq!(file("", Some(0)).permissions(), 0);
        assert_eq!(file("", Some(0o4755)).permissions(), 0o755);
    }
}
