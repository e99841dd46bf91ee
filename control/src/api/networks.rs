//! `/networks`: the cluster's own, which is the ingress network that published ports belong to.
//!
//! Left to others: the local engine's networks (the node's socket adds them).

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mesh_state::network::Network;

use super::body::Params;
use super::error::{ApiError, Kind};
use super::filters::Filters;
use super::{access, dto, lookup};
use crate::context::ApiContext;
use crate::snapshot::{ClusterSnapshot, Stored};

const KNOWN_FILTERS: [&str; 7] = ["name", "id", "label", "scope", "driver", "type", "dangling"];

/// `GET /networks`
pub(crate) async fn list(
    State(context): State<ApiContext>,
    params: Params,
) -> Result<Json<Vec<dto::Network>>, ApiError> {
    let filters = Filters::parse(params.get("filters"), &KNOWN_FILTERS)?;
    let snapshot = access::current(&context).await?;
    let matching = snapshot.networks.values().filter(|network| {
        filters.any("name", |name| network.name.contains(name))
            && filters.any("id", |id| network.id.as_str().starts_with(id))
            && filters.any("scope", |scope| scope == "swarm")
            && filters.any("driver", |driver| driver == "overlay")
            && filters.any("type", |kind| kind == "builtin")
            && filters.any("dangling", |dangling| matches!(dangling, "false" | "0"))
            // mesh's networks have no labels.
            && filters.values("label").is_empty()
    });
    Ok(Json(matching.map(|network| dto::Network::new(network)).collect()))
}

/// `GET /networks/{id}`
pub(crate) async fn inspect(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
) -> Result<Json<dto::Network>, ApiError> {
    let snapshot = access::current(&context).await?;
    Ok(Json(dto::Network::new(find(&snapshot, &query)?)))
}

/// `POST /networks/create`
pub(crate) async fn create() -> Result<StatusCode, ApiError> {
    Err(ApiError::NotImplemented(
        "networks of the cluster's own are not served by mesh yet: publish a port, every node answers on it"
            .to_owned(),
    ))
}

/// `DELETE /networks/{id}`
pub(crate) async fn remove(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
) -> Result<StatusCode, ApiError> {
    let snapshot = access::current(&context).await?;
    let network = find(&snapshot, &query)?;
    Err(ApiError::Precondition(format!("network {} belongs to mesh and can't be removed", network.name)))
}

fn find<'a>(snapshot: &'a ClusterSnapshot, query: &str) -> Result<&'a Stored<Network>, ApiError> {
    let networks = snapshot.networks.values();
    lookup::find(Kind::Network, query, networks, |network| network.id.as_str(), |network| &network.name)
}
