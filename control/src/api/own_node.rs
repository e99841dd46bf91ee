//! Calls of the agent on this machine: `POST /mesh/node/{id}` announces the id of its node, `POST
//! /mesh/resign` and `/mesh/force-new-cluster` change what this manager is.
//!
//! The paths are not Docker's. Only root reaches them, over the control socket: the agent never
//! passes a client's call to them.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use mesh_state::node::NodeRole;

use super::access;
use super::body::Params;
use super::error::ApiError;
use crate::context::ApiContext;
use crate::orders::ManagerOrder;
use crate::own_node::OwnNodeError;

/// The answer of a manager whose etcd is its operator's.
pub(crate) const NO_OWN_ETCD: &str = "this manager's etcd is not its own (--etcd): stop mesh-control on this node, then demote and remove the node on another \
                           manager with docker node demote and docker node rm";

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

/// Makes this manager give up its place. The answer comes at once; then it ends, and waits again.
pub(crate) async fn resign(
    State(context): State<ApiContext>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    let force = params.flag("force");
    if !force && context.orders.is_some() {
        // The agent may have heard it from a manager that is behind.
        let snapshot = access::current(&context).await?;
        let own = context.own_node.id();
        let role = own.and_then(|id| snapshot.nodes.get(&id).map(|node| node.spec.role));
        if role == Some(NodeRole::Manager) || snapshot.etcd_places.len() < 2 {
            return Err(ApiError::Conflict("this node's role is manager: demote it first".to_owned()));
        }
    }
    order(&context, ManagerOrder::Resign { force })
}

/// Makes this manager the only one. The answer comes at once; then it starts again.
pub(crate) async fn force_new_cluster(State(context): State<ApiContext>) -> Result<StatusCode, ApiError> {
    order(&context, ManagerOrder::ForceNewCluster)
}

fn order(context: &ApiContext, order: ManagerOrder) -> Result<StatusCode, ApiError> {
    let Some(orders) = &context.orders else { return Err(ApiError::NotImplemented(NO_OWN_ETCD.to_owned())) };
    match orders.try_send(order) {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(_) => Err(ApiError::Unavailable("this manager does so already".to_owned())),
    }
}
