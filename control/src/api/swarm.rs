//! `/swarm`: the cluster, its join tokens, and the settings that its operator may change.
//!
//! Invariant: a request that mesh can't serve is refused with the alternative, never silently
//! ignored.
//!
//! Left to others: joining (agents join with a token) and leaving (a node is removed on a manager).

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use chrono::Utc;
use mesh_runtime::error_chain;
use mesh_state::ca::RootCa;
use mesh_state::cluster::{Cluster, Sealed};
use mesh_state::ids;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::warn;
use zeroize::Zeroizing;

use super::body::{Params, read_json};
use super::error::ApiError;
use super::swarm_ca::{self, Wish};
use super::swarm_spec::{Rotation, SwarmSpec, change, needs_unlock_key};
use super::{access, dto};
use crate::ca::create_authority;
use crate::ca::root::{self, TrustedRoot};
use crate::context::{self, ApiContext, CA_KEY, MANAGER_TOKEN, UNLOCK_KEY, WORKER_TOKEN};
use crate::docker_json::shapes;
use crate::feed::snapshot::ClusterSnapshot;
use crate::seal::unlock_key::UnlockKey;

/// How long an update waits for this manager's key file to follow it.
const AT_REST_MAX: Duration = Duration::from_secs(3);

/// `GET /swarm`
pub(crate) async fn inspect(State(context): State<ApiContext>) -> Result<Json<dto::SwarmObject>, ApiError> {
    let snapshot = access::seen(&context).await?;
    let cluster = dto::Cluster::of(&snapshot).ok_or(ApiError::NoCluster)?;
    let tokens = context.join_tokens().map_err(|error| ApiError::Unseal(error.to_string()))?;
    Ok(Json(dto::SwarmObject {
        cluster,
        join_tokens: dto::JoinTokens { worker: tokens.worker, manager: tokens.manager },
    }))
}

/// `POST /swarm/update`
pub(crate) async fn update(
    State(context): State<ApiContext>,
    params: Params,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let version = params.version("swarm")?;
    let spec: SwarmSpec = read_json(request, &shapes::SWARM_SPEC).await?;
    access::catch_up(&context, version).await?;
    access::write(&context, |snapshot| {
        let current = snapshot.cluster.as_ref().ok_or(ApiError::NoCluster)?;
        let fresh = |purpose: &'static str| {
            let secret = Zeroizing::new(ids::random_text(&mut rand::rng()));
            let sealed = context.sealer.seal(purpose, secret.as_bytes());
            sealed.map_err(|error| ApiError::Unseal(error.to_string()))
        };
        let rotation = Rotation {
            certificate_life_min: context.certificate_life_min,
            worker: params.flag("rotateWorkerToken").then(|| fresh(WORKER_TOKEN)).transpose()?,
            manager: params.flag("rotateManagerToken").then(|| fresh(MANAGER_TOKEN)).transpose()?,
            unlock: needs_unlock_key(&spec, current, params.flag("rotateManagerUnlockKey"))
                .then(|| context.sealer.seal(UNLOCK_KEY, UnlockKey::random().bytes().as_slice()))
                .transpose()?,
            ca: wished_ca(&context, &spec, current)?,
        };
        change(Utc::now(), current, version, &spec, rotation)
    })
    .await?;
    until_at_rest(&context).await;
    Ok(StatusCode::OK)
}

/// The CA that an update wants the cluster to have, with its sealed key: a new one, or the
/// client's.
fn wished_ca(
    context: &ApiContext,
    spec: &SwarmSpec,
    cluster: &Cluster,
) -> Result<Option<(RootCa, Sealed)>, ApiError> {
    let wanted = match swarm_ca::wish(&spec.ca_config, cluster)? {
        Wish::Keep => return Ok(None),
        Wish::Fresh => create_authority(&cluster.id, Utc::now())
            .map_err(|error| ApiError::Unseal(error_chain(&error)))?,
        Wish::Given { certificate_pem, key_pem } => root::check(certificate_pem, key_pem, Utc::now())
            .map_err(|error| ApiError::Invalid(error.to_string()))?,
    };
    let digest = TrustedRoot::read(&wanted.certificate_pem)
        .map_err(|error| ApiError::Invalid(error.to_string()))?
        .digest;
    let key = context.sealer.seal(CA_KEY, wanted.key_pem.as_bytes())?;
    Ok(Some((RootCa { certificate_pem: wanted.certificate_pem, digest }, key)))
}

/// `GET /swarm/unlockkey`: the key that a restarted manager waits for; empty without autolock.
pub(crate) async fn unlock_key(State(context): State<ApiContext>) -> Result<Json<Value>, ApiError> {
    let snapshot = access::seen(&context).await?;
    let cluster = snapshot.cluster.as_ref().ok_or(ApiError::NoCluster)?;
    let key = context::unlock_key(cluster, &context.sealer)?;
    Ok(Json(json!({ "UnlockKey": key.map(|key| key.text().to_string()).unwrap_or_default() })))
}

/// Waits until this manager's key file has the form that an update demands. A file that can't be
/// written is tried again; its reason is in the log.
async fn until_at_rest(context: &ApiContext) {
    let mut follows = context.at_rest.clone();
    let revision = context.snapshot().cluster.as_ref().map_or(0, |cluster| cluster.mod_revision);
    let waited = timeout(AT_REST_MAX, follows.wait_for(|follows| *follows >= revision)).await;
    if !matches!(waited, Ok(Ok(_))) {
        warn!("this manager's key file does not follow the change of autolock yet");
    }
}

/// Why a manager may not leave unforced, in Swarm's words.
fn leaving(snapshot: &ClusterSnapshot, active: bool) -> String {
    let said = "You are attempting to leave the swarm on a node that is participating as a manager. ";
    let (reachable, all) = snapshot.managers_reachable();
    let unreachable = all.saturating_sub(reachable);
    let why = if !active {
        "Doing so may lose the consensus of your cluster. ".to_owned()
    } else if reachable == 1 && unreachable == 0 {
        return format!(
            "{said}Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
        );
    } else if reachable.saturating_sub(2) <= unreachable {
        format!(
            "Removing this node leaves {} managers out of {all}. Without a Raft quorum your swarm will be inaccessible. ",
            reachable.saturating_sub(1)
        )
    } else {
        String::new()
    };
    format!(
        "{said}{why}The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. \
         Use `--force` to suppress this message."
    )
}

/// `POST /swarm/init`, `join`, `leave`, `unlock`: refused. This node is a member already, and stays
/// one until it is removed.
pub(crate) async fn enter_or_leave(
    State(context): State<ApiContext>,
    Path(verb): Path<String>,
    params: Params,
) -> ApiError {
    match verb.as_str() {
        "init" | "join" => ApiError::Unavailable(
            "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
                .to_owned(),
        ),
        "leave" if !params.flag("force") => {
            let active = context.is_store_connected();
            ApiError::Unavailable(leaving(&context.snapshot(), active))
        }
        // The agent asks this manager to resign instead.
        "leave" => ApiError::NotImplemented(
            "leaving is served on the node's own docker.sock: mesh-agent leaves, and this manager resigns".to_owned(),
        ),
        "unlock" => ApiError::Conflict("swarm is not locked".to_owned()),
        _ => ApiError::PageNotFound,
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::cluster::{EtcdPlace, Manager};
    use mesh_state::keys;
    use mesh_state::node::NodeRole;

    use super::*;
    use crate::fixtures::World;

    #[test]
    fn a_manager_is_told_what_its_leaving_costs() {
        let with = |all: &[&str], alive: &[&str]| {
            let mut world = World::with_nodes(all.iter().copied());
            for name in all {
                world.update_node(name, |node| node.spec.role = NodeRole::Manager);
                let place =
                    EtcdPlace { name: (*name).to_owned(), peer_url: String::new(), address: String::new() };
                world.put(keys::etcd_place(&(*name).into()), &place);
            }
            for name in alive {
                let manager =
                    Manager { name: (*name).to_owned(), node: Some((*name).into()), ..Manager::default() };
                world.put(keys::manager(name), &manager);
            }
            world
        };
        let says = |all: &[&str], alive: &[&str], part: &str| {
            let said = leaving(&with(all, alive).snapshot, true);
            assert!(said.contains(part), "expected {part:?} in {said:?}");
        };
        says(&["a"], &["a"], "Removing the last manager erases all current state");
        says(&["a", "b"], &["a", "b"], "Removing this node leaves 1 managers out of 2. ");
        says(&["a", "b", "c"], &["a", "b"], "Removing this node leaves 1 managers out of 3. ");
        says(&["a", "b", "c"], &["a", "b", "c"], "manager. The only way to restore a swarm");
        let cut_off = leaving(&with(&["a", "b"], &["a"]).snapshot, false);
        assert!(cut_off.contains("Doing so may lose the consensus of your cluster. "), "{cut_off}");
    }
}
