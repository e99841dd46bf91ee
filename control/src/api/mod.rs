//! The swarm part of the Docker Engine API, so that the unmodified `docker` CLI is mesh's client.
//!
//! Purpose: parse requests as Go's clients write them, decide what they write (pure, one file per
//! resource), commit it, and answer in Docker's spelling.
//!
//! Invariants: reads come from one snapshot; a write is one transaction under compares and is
//! visible to the client that made it; a spec's fields are never lost, and what mesh can't do is
//! refused, not dropped. While etcd has no quorum, reads are answered from what this manager saw
//! last, and writes with 503 in Swarm's words.
//!
//! Left to others: listening (`app`), containers, images and everything else of the engine (the
//! agent's socket passes it through), and acting on a stored service (the planners).

mod error;

mod version;

mod logs;
mod services;
mod tasks;

mod nodes;

mod dependencies;

mod networks;
mod swarm;
mod swarm_ca;
mod swarm_spec;

mod clients;
mod diagnosis;
mod events;
mod own_node;
mod restore;
mod system;

mod dto;

mod access;
mod audit;
mod body;
mod filters;
mod lookup;
mod moment;
mod names;
mod port_clash;
mod unknown;
mod validate;

use axum::Router;
use axum::http::Request;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use mesh_admission::register::Call;
use mesh_state::api_paths::{BACKUP_PATH, RESTORE_PATH};
use mesh_state::dependency::DependencyKind;
use tower::Layer as _;

use crate::context::ApiContext;
use crate::metrics::api::ApiMetrics;
pub(crate) use body::Params;
use error::ApiError;
pub(crate) use own_node::NO_OWN_ETCD;
pub(crate) use version::unversioned;

/// The answer to remote clients' calls that are not about the cluster.
const NOT_REMOTE: &str = "a manager serves the cluster's part of Docker's API to remote clients: services, tasks, nodes, networks, secrets, configs. \
                          Containers, images and volumes are a node's own: docker -H ssh://NODE";

/// The API on the control socket: Docker's, for paths with and without the version, and what only
/// root on this machine may ask.
pub fn router(context: ApiContext, metrics: ApiMetrics) -> Router {
    let routes = docker_routes().merge(own_routes()).fallback(async || ApiError::PageNotFound);
    // A backup is larger than any other body, so its own handler reads it.
    let restore = Router::new().route(RESTORE_PATH, post(restore::restore)).with_state(context.clone());
    restore.fallback_service(served(routes, context, metrics))
}

/// The API for clients on other machines: Docker's alone. Their writes are logged.
pub fn remote_router(context: ApiContext, metrics: ApiMetrics) -> Router {
    let routes = docker_routes().fallback(async || ApiError::Missing(NOT_REMOTE.to_owned()));
    served(routes, context, metrics).layer(from_fn(audit::log))
}

fn served(routes: Router<ApiContext>, context: ApiContext, metrics: ApiMetrics) -> Router {
    let answering =
        routes.method_not_allowed_fallback(async || ApiError::MethodNotAllowed).with_state(context);
    // The routes are inside of the layer that strips the version, and requests are counted where
    // their route is known.
    let unversioned = from_fn(version::strip).layer(metrics.layer(answering));
    Router::new().fallback_service(from_fn(body::take_in).layer(unversioned))
}

/// The kind of a call, for its deadline: events, followed logs, and the call of the node's own
/// agent have no end; a backup takes as long as etcd takes.
pub fn kind_of<B>(request: &Request<B>) -> Call {
    let path = version::unversioned(request.uri().path());
    let has_no_end = path == "/events" || path.ends_with("/logs") || path.starts_with(own_node::PATH);
    if has_no_end || [BACKUP_PATH, RESTORE_PATH].contains(&path) { Call::Stream } else { Call::Short }
}

/// Calls of the agent on this machine, and of `mesh` as its root.
fn own_routes() -> Router<ApiContext> {
    Router::new()
        .route("/mesh/node/{id}", post(own_node::tell))
        .route("/mesh/resign", post(own_node::resign))
        .route("/mesh/force-new-cluster", post(own_node::force_new_cluster))
        .route(BACKUP_PATH, get(restore::save))
        .merge(clients::routes())
}

fn docker_routes() -> Router<ApiContext> {
    Router::new()
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/events", get(events::stream))
        .route("/swarm", get(swarm::inspect))
        .route("/swarm/problems", get(diagnosis::problems))
        .route("/swarm/update", post(swarm::update))
        .route("/swarm/unlockkey", get(swarm::unlock_key))
        .route("/swarm/{verb}", post(swarm::enter_or_leave))
        .route("/services", get(services::list))
        .route("/services/create", post(services::create))
        .route("/services/{id}", get(services::inspect).delete(services::remove))
        .route("/services/{id}/update", post(services::update))
        .route("/services/{id}/why", get(diagnosis::why))
        .route("/services/{id}/logs", get(logs::of_service))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect))
        .route("/tasks/{id}/logs", get(logs::of_task))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}", get(nodes::inspect).delete(nodes::remove))
        .route("/nodes/{id}/update", post(nodes::update))
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/{id}", get(networks::inspect).delete(networks::remove))
        .merge(dependencies::routes(DependencyKind::Secret))
        .merge(dependencies::routes(DependencyKind::Config))
}

#[cfg(test)]
mod tests {
    use mesh_state::api_paths::CONTROL_SEGMENTS;

    use super::*;

    /// Paths that the agent's socket answers together with the control plane, and the agent's own
    /// call.
    const SHARED: [&str; 6] = ["_ping", "version", "info", "events", "networks", "mesh"];

    /// The agent would pass a route whose first segment it doesn't know to the engine.
    #[test]
    fn the_agent_knows_the_first_segment_of_every_route() {
        let own = include_str!("mod.rs").split(".route(\"/").skip(1);
        let own = own.filter_map(|rest| rest.split(['/', '"']).next()).filter(|first| !first.contains('('));
        let dependencies = [DependencyKind::Secret, DependencyKind::Config].map(DependencyKind::plural);
        let mut seen = 0;
        for first in own.chain(dependencies) {
            let is_known = CONTROL_SEGMENTS.contains(&first) || SHARED.contains(&first);
            assert!(is_known, "/{first} is in no list: the agent would pass it to the engine");
            seen += 1;
        }
        assert!(seen > 20, "{seen} routes were found");
    }
}
