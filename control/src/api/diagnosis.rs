//! `GET /swarm/problems` and `GET /services/{id}/why`: what is wrong, for `mesh`.
//!
//! Mesh's own calls, below Docker's segments so that the agent's socket passes them on.

use axum::Json;
use axum::extract::{Path, State};
use chrono::Utc;
use serde::Serialize;

use super::error::ApiError;
use super::{access, services};
use crate::context::ApiContext;
use crate::diagnosis::{self, Problem, Why};

/// Everything that is wrong with the cluster.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Verdict {
    /// How many services and nodes there are.
    services: usize,
    nodes: usize,
    /// How many tasks are wanted and don't run.
    unfilled: usize,
    /// The worst first.
    problems: Vec<Problem>,
}

/// `GET /swarm/problems`
pub(crate) async fn problems(State(context): State<ApiContext>) -> Result<Json<Verdict>, ApiError> {
    let snapshot = access::seen(&context).await?;
    let now = Utc::now();
    Ok(Json(Verdict {
        services: snapshot.services.len(),
        nodes: snapshot.nodes.len(),
        unfilled: diagnosis::unfilled(now, &snapshot),
        problems: diagnosis::problems(now, &snapshot, context.is_store_connected()),
    }))
}

/// `GET /services/{id}/why`
pub(crate) async fn why(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
) -> Result<Json<Why>, ApiError> {
    let snapshot = access::seen(&context).await?;
    let service = services::find(&snapshot, &query)?;
    Ok(Json(diagnosis::why(Utc::now(), &snapshot, service)))
}
