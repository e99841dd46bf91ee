//! Dependencies of tasks beside their image: secrets and configs, which they get as files.
//!
//! Invariants: an object's data never changes, only its labels do; the data is not part of the
//! object: it is stored sealed, under a key of its own that no snapshot holds.
//!
//! Left to others: sealing (control's `seal`), which service refers to what
//! ([`crate::spec::ContainerSpec::references`]).

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::DependencyId;
use crate::spec::{Extra, Labels};

/// Secret or config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyKind {
    /// Its data is never shown once it is stored.
    Secret,
    /// Clients that can read services can read its data.
    Config,
}

impl DependencyKind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Secret, Self::Config];

    /// `secret` or `config`, as in Docker's messages and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }

    /// `secrets` or `configs`, as in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::Config => "configs",
        }
    }

    /// The kind of this name on the wire.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The kind of this plural in a path.
    pub fn of_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == plural)
    }

    /// The data must be shorter than this, bytes: Swarm's limits.
    pub fn data_limit(self) -> usize {
        match self {
            Self::Secret => 512_000,
            Self::Config => 1_024_000,
        }
    }

    /// The path of a file with this target name in a task; an absolute one stays.
    pub fn target_path(self, target: &str) -> String {
        match self {
            _ if target.starts_with('/') => target.to_owned(),
            Self::Secret => format!("/run/secrets/{target}"),
            Self::Config => format!("/{target}"),
        }
    }
}

impl std::fmt::Display for DependencyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A template language for the data of secrets and configs (`--template-driver`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateDriver {
    /// Go's text/template ([`crate::template`]).
    Golang,
}

impl TemplateDriver {
    /// `golang`, as in Docker's API and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Golang => "golang",
        }
    }

    /// The driver of this name.
    pub fn named(name: &str) -> Option<Self> {
        (name == Self::Golang.as_str()).then_some(Self::Golang)
    }
}

/// A secret or a config, without its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The id by which the secret or config is stored.
    pub id: DependencyId,
    /// Its name, unique in its kind; never changes.
    pub name: String,
    /// The user's labels.
    #[serde(default)]
    pub labels: Labels,
    /// The template language of the data, if it is a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templating: Option<TemplateDriver>,
    /// Other fields of the spec that mesh keeps without reading them.
    #[serde(default, skip_serializing_if = "Extra::is_empty")]
    pub extra: Extra,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its labels were last written.
    pub updated_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kinds_parse_back() {
        for kind in DependencyKind::ALL {
            assert_eq!(DependencyKind::named(kind.as_str()), Some(kind));
            assert_eq!(DependencyKind::of_plural(kind.plural()), Some(kind));
        }
        assert_eq!(DependencyKind::named("volume"), None);
    }

    #[test]
    fn target_paths_are_dockers() {
        assert_eq!(DependencyKind::Secret.target_path("a"), "/run/secrets/a");
        assert_eq!(DependencyKind::Secret.target_path("/etc/a"), "/etc/a");
        assert_eq!(DependencyKind::Config.target_path("a"), "/a");
        assert_eq!(DependencyKind::Config.target_path("/etc/a"), "/etc/a");
    }
}
