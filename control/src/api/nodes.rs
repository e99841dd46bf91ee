//! `/nodes`: list, inspect, update, remove.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use chrono::Utc;
use mesh_state::Timestamp;
use mesh_state::codec;
use mesh_state::keys;
use mesh_state::node::{Node, NodeRole, NodeSpec, NodeState};
use mesh_state::store::{Compare, Op};

use super::access::{self, Transaction};
use super::body::{Params, read_json};
use super::error::{ApiError, Kind};
use super::filters::Filters;
use super::{dto, lookup, shapes, validate};
use crate::context::ApiContext;
use crate::snapshot::{ClusterSnapshot, Stored, Versioned};

const KNOWN_FILTERS: [&str; 6] = ["name", "id", "label", "node.label", "role", "membership"];

/// `GET /nodes`
pub(crate) async fn list(
    State(context): State<ApiContext>,
    params: Params,
) -> Result<Json<Vec<dto::Node>>, ApiError> {
    let filters = Filters::parse(params.get("filters"), &KNOWN_FILTERS)?;
    let roles = filters.parsed("role", |text| {
        [NodeRole::Worker, NodeRole::Manager].into_iter().find(|role| role.as_str() == text)
    })?;
    let memberships = filters.parsed("membership", |text| match text {
        "accepted" => Some(true),
        "pending" => Some(false),
        _ => None,
    })?;
    let snapshot = access::current(&context).await?;
    let matching = snapshot.nodes.values().filter(|node| {
        filters.any("name", |name| name_of(node).starts_with(name))
            && filters.any("id", |id| node.id.as_str().starts_with(id))
            && filters.labels("label", &node.description.engine_labels)
            && filters.labels("node.label", &node.spec.labels)
            && (roles.is_empty() || roles.contains(&node.spec.role))
            && (memberships.is_empty() || memberships.contains(&true))
    });
    Ok(Json(matching.map(|node| dto::Node::new(&snapshot, node)).collect()))
}

/// `GET /nodes/{id}`
pub(crate) async fn inspect(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
) -> Result<Json<dto::Node>, ApiError> {
    let snapshot = access::current(&context).await?;
    Ok(Json(dto::Node::new(&snapshot, find(&snapshot, &query, &context.manager_name)?)))
}

/// `POST /nodes/{id}/update`
pub(crate) async fn update(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
    params: Params,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let version = params.version("node")?;
    let spec: NodeSpec = read_json(request, &shapes::NODE_SPEC).await?;
    access::catch_up(&context, version).await?;
    access::write(&context, |snapshot| {
        let current = find(snapshot, &query, &context.manager_name)?;
        write_spec(Utc::now(), current, version, spec.clone())
    })
    .await?;
    Ok(StatusCode::OK)
}

/// `DELETE /nodes/{id}`
pub(crate) async fn remove(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    let force = params.flag("force");
    access::write(&context, |snapshot| {
        let current = find(snapshot, &query, &context.manager_name)?;
        forget(snapshot.node_state(&current.id), current, force)
    })
    .await?;
    Ok(StatusCode::OK)
}

/// The node that a client names; `self` is the one that this manager runs on.
pub(crate) fn find<'a>(
    snapshot: &'a ClusterSnapshot,
    query: &str,
    manager_name: &str,
) -> Result<&'a Stored<Node>, ApiError> {
    let query = if query == "self" { manager_name } else { query };
    lookup::find(Kind::Node, query, snapshot.nodes.values(), |node| node.id.as_str(), |node| name_of(node))
}

fn name_of(node: &Node) -> &str {
    if node.spec.name.is_empty() { &node.description.hostname } else { &node.spec.name }
}

/// A node's new spec, by a client that read it at `version`.
fn write_spec(
    now: Timestamp,
    current: &Versioned<Node>,
    version: i64,
    spec: NodeSpec,
) -> Result<Transaction, ApiError> {
    validate::node_spec(&spec)?;
    if version != current.mod_revision {
        return Err(ApiError::OutOfSequence);
    }
    match (current.spec.role, spec.role) {
        (NodeRole::Worker, NodeRole::Manager) => {
            return Err(ApiError::NotImplemented(
                "promoting a node is not served by mesh yet: start mesh-control on it, with the cluster's key file"
                    .to_owned(),
            ));
        }
        (NodeRole::Manager, NodeRole::Worker) => {
            return Err(ApiError::NotImplemented(
                "demoting a node is not served by mesh yet: stop mesh-control on it".to_owned(),
            ));
        }
        _ => {}
    }
    let key = keys::node(&current.id);
    let node = Node { spec, updated_at: now, ..current.value.clone() };
    Ok(Transaction {
        compares: vec![Compare::ModRevision(key.clone(), version)],
        ops: vec![Op::put(key, codec::encode(&node)?)],
    })
}

/// A node taken out of the cluster. Its tasks are replaced elsewhere, and its certificate is refused from then on.
fn forget(state: NodeState, current: &Versioned<Node>, force: bool) -> Result<Transaction, ApiError> {
    let id = &current.id;
    if current.spec.role == NodeRole::Manager && !force {
        return Err(ApiError::Precondition(format!(
            "node {id} is a cluster manager: stop mesh-control on it, then use --force"
        )));
    }
    if state != NodeState::Down && !force {
        return Err(ApiError::Precondition(format!("node {id} is not down and can't be removed")));
    }
    Ok(Transaction {
        compares: vec![Compare::ModRevision(keys::node(id), current.mod_revision)],
        ops: vec![Op::delete(keys::node(id)), Op::delete(keys::liveness(id)), Op::delete(keys::ack(id))],
    })
}
