//! `Secret` and `Config`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mesh_state::Timestamp;
use mesh_state::dependency::Dependency as StoredDependency;
use mesh_state::spec::{Extra, Labels};
use serde::Serialize;

use super::Version;
use crate::feed::snapshot::Versioned;

/// A secret, or a config with its data.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Dependency {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: Timestamp,
    updated_at: Timestamp,
    spec: Spec,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    name: String,
    labels: Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    templating: Option<Templating>,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Templating {
    name: &'static str,
}

impl Dependency {
    /// The API object of a stored secret or config, with its data if that may be shown.
    pub(crate) fn new(stored: &Versioned<StoredDependency>, data: Option<&[u8]>) -> Self {
        Self {
            id: stored.id.to_string(),
            version: Version { index: stored.mod_revision },
            created_at: stored.created_at,
            updated_at: stored.updated_at,
            spec: Spec {
                name: stored.name.clone(),
                labels: stored.labels.clone(),
                data: data.map(|data| BASE64.encode(data)),
                templating: stored.templating.map(|driver| Templating { name: driver.as_str() }),
                extra: stored.extra.clone(),
            },
        }
    }
}
