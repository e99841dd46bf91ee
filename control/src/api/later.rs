//! Paths of Swarm's that mesh doesn't serve yet: lists are empty, so that clients go on; the rest says so.

use axum::Json;
use axum::extract::Path;
use serde_json::Value;

use super::error::{ApiError, Kind};

/// `GET /secrets`, `GET /configs`: there are none.
pub(crate) async fn none() -> Json<Vec<Value>> {
    Json(Vec::new())
}

/// `POST /secrets/create`
pub(crate) async fn secret_create() -> ApiError {
    ApiError::NotImplemented("secrets are not supported by mesh yet: the secret was not stored".to_owned())
}

/// `POST /configs/create`
pub(crate) async fn config_create() -> ApiError {
    ApiError::NotImplemented("configs are not supported by mesh yet: the config was not stored".to_owned())
}

/// `/secrets/{id}`
pub(crate) async fn secret(Path(query): Path<String>) -> ApiError {
    ApiError::NotFound { kind: Kind::Secret, query }
}

/// `/configs/{id}`
pub(crate) async fn config(Path(query): Path<String>) -> ApiError {
    ApiError::NotFound { kind: Kind::Config, query }
}

/// `POST /swarm/…`
pub(crate) async fn swarm_change(Path(verb): Path<String>) -> ApiError {
    ApiError::NotImplemented(format!(
        "swarm {verb} is not served by mesh: nodes join with mesh-agent --join-token-file, and leave when they are removed"
    ))
}
