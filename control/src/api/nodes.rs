//! `/nodes`: lists, inspects, updates and removes nodes.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use chrono::Utc;
use mesh_state::Timestamp;
use mesh_state::codec;
use mesh_state::ids::NodeId;
use mesh_state::keys;
use mesh_state::node::{Node, NodeRole, NodeSpec, NodeState};
use mesh_state::store::{Compare, Op};

use super::access::{self, Transaction};
use super::body::{Params, read_checked_json};
use super::dto::runs_manager;
use super::error::{ApiError, ObjectKind};
use super::filters::Filters;
use super::{dto, lookup, validate};
use crate::context::ApiContext;
use crate::docker_json::shapes;
use crate::feed::snapshot::{ClusterSnapshot, Stored, Versioned};

/// The answer to `self` before this machine's agent has announced its node's id.
const OWN_NODE_UNKNOWN: &str = "this manager doesn't know its node yet: start mesh-agent on this machine, with this manager's socket as \
                                its --control-socket";

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
    let snapshot = access::seen(&context).await?;
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
    let snapshot = access::seen(&context).await?;
    Ok(Json(dto::Node::new(&snapshot, find(&snapshot, &query, context.own_node.id().as_ref())?)))
}

/// `POST /nodes/{id}/update`
pub(crate) async fn update(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
    params: Params,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let version = params.version("node")?;
    let spec: NodeSpec = read_checked_json(request, &shapes::NODE_SPEC, validate::words::in_node).await?;
    access::catch_up(&context, version).await?;
    access::write(&context, |snapshot| {
        let current = find(snapshot, &query, context.own_node.id().as_ref())?;
        write_spec(snapshot, Utc::now(), current, version, spec.clone())
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
        let current = find(snapshot, &query, context.own_node.id().as_ref())?;
        forget(snapshot, current, force)
    })
    .await?;
    Ok(StatusCode::OK)
}

/// The node that a client refers to; `self` is the one that this manager runs on.
pub(crate) fn find<'a>(
    snapshot: &'a ClusterSnapshot,
    query: &str,
    own: Option<&NodeId>,
) -> Result<&'a Stored<Node>, ApiError> {
    let query = match (query, own) {
        ("self", Some(own)) => own.as_str(),
        ("self", None) => return Err(ApiError::Unavailable(OWN_NODE_UNKNOWN.to_owned())),
        (named, _) => named,
    };
    lookup::find(
        ObjectKind::Node,
        query,
        snapshot.nodes.values(),
        |node| node.id.as_str(),
        |node| name_of(node),
    )
}

fn name_of(node: &Node) -> &str {
    if node.spec.name.is_empty() { &node.description.hostname } else { &node.spec.name }
}

/// The write of a node's new spec, by a client that read it at `version`.
///
/// The role is stored, and placement by role follows it; the node's agent hears of it, and its
/// manager takes its place, or gives it up. With `--etcd`, the operator starts and stops
/// mesh-control.
fn write_spec(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    current: &Versioned<Node>,
    version: i64,
    spec: NodeSpec,
) -> Result<Transaction, ApiError> {
    validate::node_spec(&spec)?;
    if !knows_spec(current, version) {
        return Err(ApiError::OutOfSequence);
    }
    if current.spec.role == NodeRole::Manager && spec.role == NodeRole::Worker && is_last(snapshot, current) {
        let message = "attempting to demote the last manager of the swarm";
        return Err(ApiError::Precondition(message.to_owned()));
    }
    let ceases = current.spec.role == NodeRole::Manager && spec.role == NodeRole::Worker;
    if ceases && !snapshot.keeps_quorum_without(&current.id) {
        let message = "can't remove member from the raft: this would result in a loss of quorum";
        return Err(ApiError::Precondition(message.to_owned()));
    }
    let key = keys::node(&current.id);
    let node = Node {
        spec,
        updated_at: now,
        spec_written_after: Some(current.mod_revision),
        ..current.value.clone()
    };
    Ok(Transaction {
        compares: vec![Compare::ModRevision(key.clone(), current.mod_revision)],
        ops: vec![Op::put(key, codec::encode(&node)?)],
    })
}

/// Whether a client that read the node at `version` has its present spec. The record also has the
/// node's description and subnet, whose changes don't concern a user.
fn knows_spec(current: &Versioned<Node>, version: i64) -> bool {
    match current.spec_written_after {
        Some(before) => (before + 1..=current.mod_revision).contains(&version),
        None => version == current.mod_revision,
    }
}

/// Whether no other node has a living manager.
fn is_last(snapshot: &ClusterSnapshot, node: &Node) -> bool {
    let mut others = snapshot.nodes.values().filter(|other| other.id != node.id);
    !others.any(|other| other.spec.role == NodeRole::Manager && snapshot.manager_on(&other.id).is_some())
}

/// The write that removes a node from the cluster. Its tasks are replaced elsewhere, and its
/// certificate is refused from then on.
fn forget(
    snapshot: &ClusterSnapshot,
    current: &Versioned<Node>,
    force: bool,
) -> Result<Transaction, ApiError> {
    let id = &current.id;
    // Not even by force: its mesh-control would go on writing to the store.
    if current.spec.role == NodeRole::Manager && runs_manager(snapshot, current) {
        return Err(ApiError::Precondition(format!(
            "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
        )));
    }
    if snapshot.node_state(id) != NodeState::Down && !force {
        return Err(ApiError::Precondition(format!("node {id} is not down and can't be removed")));
    }
    Ok(Transaction {
        compares: vec![Compare::ModRevision(keys::node(id), current.mod_revision)],
        ops: vec![
            Op::delete(keys::node(id)),
            Op::delete(keys::liveness(id)),
            Op::delete(keys::ack(id)),
            Op::delete(keys::clashes(id)),
            Op::delete(keys::host_networks(id)),
        ],
    })
}

#[cfg(test)]
mod tests {
    use mesh_state::cluster::{EtcdPlace, Manager};

    use super::*;
    use crate::fixtures::World;

    /// Nodes a and b, which have the same hostname; mesh-control is alive on those named.
    fn world(managers: &[&str], alive: &[&str]) -> World {
        let mut world = World::with_nodes(["a", "b"]);
        for id in ["a", "b"] {
            world.update_node(id, |node| {
                node.description.hostname = "host".to_owned();
                node.spec.role = if managers.contains(&id) { NodeRole::Manager } else { NodeRole::Worker };
            });
        }
        for id in alive {
            let name = if *id == "a" { "host" } else { "other" };
            let manager = Manager { name: name.to_owned(), node: Some((*id).into()), ..Manager::default() };
            world.put(keys::manager(name), &manager);
        }
        world
    }

    fn outcome(decided: Result<Transaction, ApiError>) -> String {
        decided.map_or_else(|error| error.to_string(), |_| "written".to_owned())
    }

    fn change_role(world: &World, role: NodeRole) -> String {
        let node = world.snapshot.nodes[&"a".into()].clone();
        let spec = NodeSpec { role, ..node.spec.clone() };
        outcome(write_spec(&world.snapshot, world.now, &node, node.mod_revision, spec))
    }

    #[test]
    fn the_last_living_manager_cannot_be_demoted() {
        let last = "attempting to demote the last manager of the swarm";
        assert_eq!(change_role(&world(&["a"], &["a"]), NodeRole::Worker), last);
        let promoted_only = world(&["a", "b"], &["a"]);
        assert_eq!(change_role(&promoted_only, NodeRole::Worker), last, "b runs no manager");
        assert_eq!(change_role(&world(&["a", "b"], &["a", "b"]), NodeRole::Worker), "written");
        assert_eq!(change_role(&world(&["b"], &["b"]), NodeRole::Manager), "written");
    }

    #[test]
    fn a_manager_whose_loss_would_cost_the_quorum_cannot_be_demoted() {
        let with_places = |alive: &[&str]| {
            let mut world = world(&["a", "b"], alive);
            world.add_node(&crate::fixtures::node("c"));
            for id in ["a", "b", "c"] {
                let place =
                    EtcdPlace { name: id.to_owned(), peer_url: format!("u{id}"), address: String::new() };
                world.put(keys::etcd_place(&id.into()), &place);
            }
            world
        };
        let refused = "can't remove member from the raft: this would result in a loss of quorum";
        assert_eq!(change_role(&with_places(&["a", "b"]), NodeRole::Worker), refused, "c is dead");
        let mut all_live = with_places(&["a", "b"]);
        let third = Manager { name: "third".to_owned(), node: Some("c".into()), ..Manager::default() };
        all_live.put(keys::manager("third"), &third);
        assert_eq!(change_role(&all_live, NodeRole::Worker), "written");
    }

    #[test]
    fn a_nodes_new_description_does_not_outdate_a_users_version() {
        let mut world = world(&["a"], &["a"]);
        world.update_node("b", |node| node.spec_written_after = Some(0));
        let update = |world: &World, version: i64, zone: &str| {
            let node = world.snapshot.nodes[&"b".into()].clone();
            let labels = [("zone".to_owned(), zone.to_owned())].into();
            write_spec(&world.snapshot, world.now, &node, version, NodeSpec { labels, ..NodeSpec::default() })
        };
        let revision = |world: &World| world.snapshot.nodes[&"b".into()].mod_revision;
        let read_at = revision(&world);
        world.update_node("b", |node| node.description.kernel = "6.18".to_owned());
        world.update_node("b", |node| node.subnet = None);
        assert!(revision(&world) > read_at);
        let written = update(&world, read_at, "x").unwrap();
        let stands_on = Compare::ModRevision(keys::node(&"b".into()), revision(&world));
        assert_eq!(written.compares, [stands_on], "the record has not changed since this was decided");
        let Op::Put { value, .. } = &written.ops[0] else { panic!("a node was deleted") };
        let node: Node = codec::decode(value).unwrap();
        assert_eq!(node.description.kernel, "6.18", "the node's description stays");
        world.put_node(&node);
        let stale = "update out of sequence";
        assert_eq!(outcome(update(&world, read_at, "y")), stale, "another user was faster");
        assert_eq!(outcome(update(&world, revision(&world), "y")), "written");
        assert_eq!(outcome(update(&world, revision(&world) + 1, "y")), stale, "a version that never existed");
    }

    #[test]
    fn a_record_of_an_earlier_mesh_is_current_at_its_last_write_only() {
        let mut world = world(&["a"], &["a"]);
        let read_at = world.snapshot.nodes[&"b".into()].mod_revision;
        world.update_node("b", |node| node.description.kernel = "6.18".to_owned());
        let node = world.snapshot.nodes[&"b".into()].clone();
        assert!(!knows_spec(&node, read_at) && knows_spec(&node, node.mod_revision));
    }

    #[test]
    fn a_node_is_removed_when_it_is_down_or_by_force_but_no_manager() {
        let remove = |world: &World, force| {
            outcome(forget(&world.snapshot, &world.snapshot.nodes[&"a".into()], force))
        };
        let mut worker = world(&["b"], &["b"]);
        assert_eq!(remove(&worker, false), "node a is not down and can't be removed");
        assert_eq!(remove(&worker, true), "written");
        worker.set_liveness(&"a".into(), NodeState::Down);
        assert_eq!(remove(&worker, false), "written");
        let manager = remove(&world(&["a", "b"], &["a", "b"]), true);
        assert!(manager.starts_with("node a is a cluster manager"), "saw {manager}");
        assert_eq!(remove(&world(&["a", "b"], &["b"]), true), "written", "it runs no manager any more");
    }
}
