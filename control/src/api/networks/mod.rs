//! `/networks`: the cluster's networks, that is those of users and the ingress network, to which
//! published ports belong.
//!
//! Left to others: the local engine's networks (the node's socket adds them), and the addresses of
//! services, tasks and nodes on a network (the leader gives them).

mod addresses;
mod options;
pub(crate) mod write;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use chrono::Utc;
use mesh_state::ids::NetworkId;
use mesh_state::network::{Network, NetworkSpec};
use mesh_state::spec::Labels;
use serde::Serialize;

use super::body::{Params, read_json};
use super::error::{ApiError, ObjectKind};
use super::filters::Filters;
use super::{access, dto, lookup, moment, unknown};
use crate::context::ApiContext;
use crate::docker_json::shapes;
use crate::feed::snapshot::{ClusterSnapshot, Stored};

/// The scope of the cluster's networks.
const SCOPE: &str = "swarm";

const PRUNE_FILTERS: [&str; 3] = ["label", "label!", "until"];
const KNOWN_FILTERS: [&str; 7] = ["name", "id", "label", "scope", "driver", "type", "dangling"];

/// Answer to a creation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CreatedNetwork {
    id: String,
    warning: String,
}

/// Answer to pruning.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PrunedNetworks {
    networks_deleted: Vec<String>,
}

/// `GET /networks`
pub(crate) async fn list(
    State(context): State<ApiContext>,
    params: Params,
) -> Result<Json<Vec<dto::Network>>, ApiError> {
    let filters = Filters::parse(params.get("filters"), &KNOWN_FILTERS)?;
    let snapshot = access::seen(&context).await?;
    let no_labels = Labels::new();
    let matching = snapshot.networks.values().filter(|network| {
        filters.any("name", |name| network.name.contains(name))
            && filters.any("id", |id| network.id.as_str().starts_with(id))
            && filters.any("scope", |scope| scope == SCOPE)
            && filters.any("driver", |driver| driver == "overlay")
            // For Docker, the ingress network counts as a user's: it can be removed and made anew.
            && filters.any("type", |kind| kind == "custom")
            && filters.any("dangling", |dangling| {
                matches!(dangling, "true" | "1") == write::user_of(&snapshot, network).is_none()
            })
            && filters.labels("label", network.spec.labels.as_ref().unwrap_or(&no_labels))
    });
    Ok(Json(matching.map(|network| dto::Network::new(network)).collect()))
}

/// `GET /networks/{id}`
pub(crate) async fn inspect(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
    params: Params,
) -> Result<Json<dto::Network>, ApiError> {
    // All networks of the cluster have this scope, so another one finds none.
    if !matches!(params.get("scope").unwrap_or_default(), "" | SCOPE) {
        return Err(ApiError::NotFound { kind: ObjectKind::Network, query });
    }
    let snapshot = access::seen(&context).await?;
    let network = find(&snapshot, &query)?;
    let members = dto::Members::of(&snapshot, network);
    let shown = dto::Network::new(network).with_members(&members, context.own_node.id().as_ref());
    Ok(Json(if params.flag("verbose") { shown.with_services(&members) } else { shown }))
}

/// `POST /networks/create`
pub(crate) async fn create(
    State(context): State<ApiContext>,
    request: Request,
) -> Result<(StatusCode, Json<CreatedNetwork>), ApiError> {
    let spec: NetworkSpec = read_json(request, &shapes::NETWORK_SPEC).await?;
    let id = NetworkId::random(&mut rand::rng());
    access::write(&context, |snapshot| write::create(snapshot, Utc::now(), &id, spec.clone())).await?;
    let warnings = [
        unknown::warning(&spec, &shapes::NETWORK_SPEC)?,
        write::warning(&*access::seen(&context).await?, &spec),
    ];
    let warning = warnings.into_iter().flatten().collect::<Vec<_>>().join("; ");
    Ok((StatusCode::CREATED, Json(CreatedNetwork { id: id.to_string(), warning })))
}

/// `DELETE /networks/{id}`
pub(crate) async fn remove(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
) -> Result<StatusCode, ApiError> {
    access::write(&context, |snapshot| write::remove(snapshot, find(snapshot, &query)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /networks/prune`: removes all networks that no service names; the ingress network stays.
pub(crate) async fn prune(
    State(context): State<ApiContext>,
    params: Params,
) -> Result<Json<PrunedNetworks>, ApiError> {
    let filters = Filters::parse(params.get("filters"), &PRUNE_FILTERS)?;
    let now = Utc::now();
    let before = filters.parsed("until", |text| moment::ago(text, now))?;
    let snapshot = access::current(&context).await?;
    let mut networks_deleted = Vec::new();
    for network in write::unused(&snapshot, &filters, &before) {
        let removal =
            |snapshot: &ClusterSnapshot| write::remove(snapshot, find(snapshot, network.id.as_str())?);
        match access::write(&context, removal).await {
            Ok(_) => networks_deleted.push(network.name.clone()),
            // A service has just begun to name it, or another client removed it.
            Err(ApiError::Precondition(_) | ApiError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Json(PrunedNetworks { networks_deleted }))
}

/// The network that a client names by id, name or beginning of an id.
pub(crate) fn find<'a>(snapshot: &'a ClusterSnapshot, query: &str) -> Result<&'a Stored<Network>, ApiError> {
    let networks = snapshot.networks.values();
    lookup::find(ObjectKind::Network, query, networks, |network| network.id.as_str(), |network| &network.name)
}
