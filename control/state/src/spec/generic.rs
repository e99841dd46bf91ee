//! Generic resources, which an operator defines: counted ones, and ones with names of their own.

use serde::{Deserialize, Serialize};

/// Generic resources that a node has, a spec asks for, or a task was given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GenericResource {
    /// One with a name.
    #[serde(rename = "NamedResourceSpec")]
    Named(NamedResource),
    /// A number of equal ones.
    #[serde(rename = "DiscreteResourceSpec")]
    Discrete(DiscreteResource),
}

/// One resource of a kind, by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NamedResource {
    /// The kind, such as `gpu`.
    pub kind: String,
    /// The name of the one resource of the kind, such as a device's.
    pub value: String,
}

/// A number of resources of a kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiscreteResource {
    /// The kind, such as `ssd`.
    pub kind: String,
    /// How many of the kind there are.
    pub value: i64,
}

impl GenericResource {
    /// A number of equal resources.
    pub fn discrete(kind: impl Into<String>, value: i64) -> Self {
        Self::Discrete(DiscreteResource { kind: kind.into(), value })
    }

    /// One resource by its name.
    pub fn named(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Named(NamedResource { kind: kind.into(), value: value.into() })
    }

    /// The kind that the resource is counted under.
    pub fn kind(&self) -> &str {
        match self {
            Self::Named(resource) => &resource.kind,
            Self::Discrete(resource) => &resource.kind,
        }
    }

    /// The name or the number, as the task's environment has it.
    pub fn value(&self) -> String {
        match self {
            Self::Named(resource) => resource.value.clone(),
            Self::Discrete(resource) => resource.value.to_string(),
        }
    }
}
