//! Resources that an operator names: counted ones, and ones with names of their own.

use serde::{Deserialize, Serialize};

/// Some of a node's, asked for, or given to a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GenericResource {
    /// One that has a name.
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
    /// Such as `gpu`.
    pub kind: String,
    /// Its name.
    pub value: String,
}

/// Resources of a kind, by their number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiscreteResource {
    /// Such as `ssd`.
    pub kind: String,
    /// How many.
    pub value: i64,
}

impl GenericResource {
    /// A number of equal ones.
    pub fn discrete(kind: impl Into<String>, value: i64) -> Self {
        Self::Discrete(DiscreteResource { kind: kind.into(), value })
    }

    /// One by its name.
    pub fn named(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Named(NamedResource { kind: kind.into(), value: value.into() })
    }

    /// Its kind.
    pub fn kind(&self) -> &str {
        match self {
            Self::Named(resource) => &resource.kind,
            Self::Discrete(resource) => &resource.kind,
        }
    }

    /// Its name or number, as a task is told.
    pub fn value(&self) -> String {
        match self {
            Self::Named(resource) => resource.value.clone(),
            Self::Discrete(resource) => resource.value.to_string(),
        }
    }
}
