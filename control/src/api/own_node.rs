//! `POST /mesh/node/{id}`: the agent on this machine announces the id of its node.
//!
//! The path is not Docker's. Only root reaches it, over the control socket: the agent never passes
//! a client's call to it.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use futures::stream;

use super::error::ApiError;
use crate::context::ApiContext;
use crate::own_node::OwnNodeError;

/// The prefix of the path.
pub(super) const PATH: &str = "/mesh/node/";

/// Stores the id. The response stays open until this manager ends: then the agent announces the id
/// to the next one.
pub(crate) async fn tell(
    State(context): State<ApiContext>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let news = context.own_node.learn(&id).map_err(|error| match error {
        OwnNodeError::NoId(_) => ApiError::BadRequest(error.to_string()),
        OwnNodeError::Read { .. } | OwnNodeError::Write { .. } => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "can't store the id of this manager's node"
            );
            ApiError::Unavailable(error.to_string())
        }
    })?;
    if news {
        tracing::info!(node = %id, "this manager runs on a node of the cluster");
    }
    let stopping = context.stopping.clone();
    let end = stream::once(async move {
        stopping.cancelled().await;
        Ok::<_, Infallible>(Bytes::new())
    });
    Ok(Body::from_stream(end).into_response())
}
