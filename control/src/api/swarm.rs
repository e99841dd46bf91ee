//! `/swarm`: the cluster and, for whoever adds nodes, its join tokens.

use axum::Json;
use axum::extract::{Path, State};

use super::error::ApiError;
use super::{access, dto};
use crate::context::ApiContext;

/// `GET /swarm`
pub(crate) async fn inspect(State(context): State<ApiContext>) -> Result<Json<dto::SwarmObject>, ApiError> {
    let snapshot = access::current(&context).await?;
    let cluster = snapshot.cluster.as_ref().ok_or(ApiError::NoCluster)?;
    let tokens = context.join_tokens().map_err(|error| ApiError::Unseal(error.to_string()))?;
    Ok(Json(dto::SwarmObject {
        cluster: dto::Cluster::new(cluster),
        join_tokens: dto::JoinTokens { worker: tokens.worker, manager: tokens.manager },
    }))
}

/// `POST /swarm/…`
pub(crate) async fn change(Path(verb): Path<String>) -> ApiError {
    ApiError::NotImplemented(format!(
        "swarm {verb} is not served by mesh: nodes join with mesh-agent --join-token-file, and leave when they are removed"
    ))
}
