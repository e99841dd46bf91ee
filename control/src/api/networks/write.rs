//! Creates and removes networks, each in one transaction. Pure.
//!
//! Invariants: a network, the claim of its name, and the cursor of subnets and numbers are written
//! together, so two managers can't give a subnet or number twice; a network that a service names
//! stays. A service that begins to name a network rewrites the network's record
//! (`services::networks`), so a removal at the same moment fails its compare.

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::attachment::AttachedContainer;
use mesh_state::codec;
use mesh_state::ids::NetworkId;
use mesh_state::keys;
use mesh_state::network::{ENCRYPTED, Network, NetworkSpec};
use mesh_state::service::Service;
use mesh_state::spec::{Labels, PublishMode};
use mesh_state::store::{Compare, Op};
use mesh_state::task::{Task, TaskState};

use super::{addresses, options};
use crate::api::access::Transaction;
use crate::api::error::ApiError;
use crate::api::filters::Filters;
use crate::api::services::networks::named_by;
use crate::api::validate;
use crate::feed::snapshot::{ClusterSnapshot, Versioned};
use crate::slots::host_overlap;
use crate::slots::network_space::{self, NetworkSpace, Wanted};

/// The kind under which networks claim their names.
const NAME_KIND: &str = "networks";

/// Names of networks that every engine has.
const PREDEFINED: [&str; 4] = ["bridge", "host", "none", "default"];

/// The writes of a new network.
///
/// # Errors
/// What is wrong with the request, or that its name is taken.
pub(super) fn create(
    snapshot: &ClusterSnapshot,
    now: Timestamp,
    id: &NetworkId,
    spec: NetworkSpec,
) -> Result<Transaction, ApiError> {
    let is_taken = snapshot.names.contains_key(&(NAME_KIND.to_owned(), spec.name.clone()));
    if is_taken || PREDEFINED.contains(&spec.name.as_str()) {
        return Err(ApiError::Conflict(format!("network with name {} already exists", spec.name)));
    }
    validate::network_name(&spec.name)?;
    options::check(snapshot, &spec)?;
    let cluster = snapshot.cluster.as_ref().ok_or(ApiError::NoCluster)?;
    let space = network_space::give(snapshot, cluster, &addresses::wanted(&spec)?)?;
    let network = Network {
        id: id.clone(),
        name: spec.name.clone(),
        ingress: false,
        subnet: space.subnet,
        subnet6: space.subnet6,
        number: spec.numbered(space.number),
        node_addresses: BTreeMap::new(),
        created_at: now,
        spec,
    };
    write_new(snapshot, space, &network)
}

/// The writes of a network that was given `space`.
fn write_new(
    snapshot: &ClusterSnapshot,
    space: NetworkSpace,
    network: &Network,
) -> Result<Transaction, ApiError> {
    let (key, name_key) = (keys::network(&network.id), keys::name(NAME_KIND, &network.name));
    let cursor_key = keys::NETWORK_CURSOR.to_owned();
    let cursor_stands = match &snapshot.network_cursor {
        Some(cursor) => Compare::ModRevision(cursor_key.clone(), cursor.mod_revision),
        None => Compare::Absent(cursor_key.clone()),
    };
    Ok(Transaction {
        compares: vec![Compare::Absent(key.clone()), Compare::Absent(name_key.clone()), cursor_stands],
        ops: vec![
            Op::put(name_key, codec::encode(&network.id)?),
            Op::put(key, codec::encode(network)?),
            Op::put(cursor_key, codec::encode(&space.cursor)?),
        ],
    })
}

/// The writes that give the cluster a network of a backup: with its id and its subnets, and with
/// its number if that is free. Nodes get their addresses on it anew.
///
/// # Errors
/// Its name or its subnet is in use.
pub(crate) fn recreate(snapshot: &ClusterSnapshot, saved: &Network) -> Result<Transaction, ApiError> {
    if snapshot.names.contains_key(&(NAME_KIND.to_owned(), saved.name.clone())) {
        return Err(ApiError::Conflict(format!("network with name {} already exists", saved.name)));
    }
    let cluster = snapshot.cluster.as_ref().ok_or(ApiError::NoCluster)?;
    let wanted =
        Wanted { subnet: Some(saved.subnet), has_ipv6: saved.subnet6.is_some(), subnet6: saved.subnet6 };
    let space = network_space::give(snapshot, cluster, &wanted)?;
    let plain = |number: u32| number & !ENCRYPTED;
    let is_taken = snapshot.networks.values().any(|other| plain(other.number) == plain(saved.number));
    let number = if is_taken { saved.spec.numbered(space.number) } else { saved.number };
    write_new(snapshot, space, &Network { number, node_addresses: BTreeMap::new(), ..saved.clone() })
}

/// What a user should know of a network that was made with this subnet; `None` if nothing.
pub(super) fn warning(snapshot: &ClusterSnapshot, spec: &NetworkSpec) -> Option<String> {
    let subnet = addresses::wanted(spec).ok()?.subnet?;
    let host = host_overlap::covering(snapshot, subnet)?;
    Some(format!("{subnet} lies in {host}: tasks on the network do not reach hosts at its addresses"))
}

/// The writes that remove a network and the claim of its name.
///
/// # Errors
/// A service names the network, a task of a service that has just left it is still on it, or it is
/// mesh's own.
pub(crate) fn remove(
    snapshot: &ClusterSnapshot,
    current: &Versioned<Network>,
) -> Result<Transaction, ApiError> {
    if current.ingress {
        return Err(ApiError::Precondition(format!(
            "network {} belongs to mesh and can't be removed",
            current.name
        )));
    }
    if let Some(service) = user_of(snapshot, current) {
        return Err(ApiError::Precondition(format!(
            "network {} is in use by service {}",
            current.id, service.id
        )));
    }
    if let Some(task) = task_on(snapshot, current) {
        return Err(ApiError::Precondition(format!("network {} is in use by task {}", current.id, task.id)));
    }
    if let Some(container) = container_on(snapshot, current) {
        return Err(ApiError::Precondition(format!(
            "network {} is in use by container {} on node {}",
            current.id, container.name, container.node_id
        )));
    }
    Ok(Transaction {
        compares: vec![Compare::ModRevision(keys::network(&current.id), current.mod_revision)],
        ops: vec![Op::delete(keys::network(&current.id)), Op::delete(keys::name(NAME_KIND, &current.name))],
    })
}

/// The networks that pruning removes: those of users that no service names, that pass `filters`,
/// and that were made before every moment in `before`.
pub(super) fn unused<'a>(
    snapshot: &'a ClusterSnapshot,
    filters: &Filters,
    before: &[Timestamp],
) -> Vec<&'a Network> {
    let no_labels = Labels::new();
    let networks = snapshot.networks.values().map(|network| &network.value);
    networks
        .filter(|network| {
            let labels = network.spec.labels.as_ref().unwrap_or(&no_labels);
            !network.ingress
                && user_of(snapshot, network).is_none()
                && task_on(snapshot, network).is_none()
                && container_on(snapshot, network).is_none()
                && filters.labels("label", labels)
                && filters.lacks_labels("label!", labels)
                && before.iter().all(|moment| network.created_at <= *moment)
        })
        .collect()
}

/// A service that uses the network. Every service that publishes ports uses the ingress network.
pub(super) fn user_of<'a>(snapshot: &'a ClusterSnapshot, network: &Network) -> Option<&'a Service> {
    let uses = |service: &&'a Service| {
        let publishes =
            network.ingress && service.ports.iter().any(|port| port.publish_mode == PublishMode::Ingress);
        publishes || named_by(&service.spec).contains(&network.id.as_str())
    };
    snapshot.services.values().map(|service| &service.value).find(uses)
}

/// A task that stays on the network for now, although its service no longer names it: the update
/// that replaces the task has not reached it yet. Tasks that are to stop, and tasks of removed
/// services, don't count, as they leave soon.
fn task_on<'a>(snapshot: &'a ClusterSnapshot, network: &Network) -> Option<&'a Task> {
    let is_on = |task: &&'a Task| {
        task.attachments.iter().any(|attachment| attachment.network_id == network.id)
            && task.desired_state <= TaskState::Running
            && snapshot.state_of(task) <= TaskState::Running
            && snapshot.services.contains_key(&task.service_id)
    };
    snapshot.tasks.values().map(|task| &task.value).find(is_on)
}

/// An attached container on the network.
fn container_on<'a>(snapshot: &'a ClusterSnapshot, network: &Network) -> Option<&'a AttachedContainer> {
    let mut attached = snapshot.attachments.values().map(|container| &container.value);
    attached.find(|container| container.network_id == network.id)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use mesh_state::network::Attachment;
    use serde_json::json;

    use super::*;
    use crate::fixtures::{World, service, task};

    fn asked(body: serde_json::Value) -> NetworkSpec {
        serde_json::from_value(body).unwrap()
    }

    /// A world with the network `net`.
    fn with_network() -> World {
        let mut world = World::new();
        let network = Network {
            id: "n1".into(),
            name: "net".into(),
            ingress: false,
            subnet: "10.55.0.0/24".parse().unwrap(),
            subnet6: None,
            number: 7,
            node_addresses: BTreeMap::new(),
            created_at: Timestamp::default(),
            spec: asked(json!({"Name": "net", "Driver": "overlay"})),
        };
        world.put(keys::name(NAME_KIND, "net"), &network.id);
        world.put(keys::network(&network.id), &network);
        world
    }

    #[test]
    fn a_request_is_kept_whole() {
        let world = with_network();
        let spec = asked(json!({"Name": "other", "Driver": "overlay", "Labels": {"a": "1"},
            "IPAM": {"Driver": "default", "Options": {}, "Config": []}, "Later": 7}));
        let made = create(&world.snapshot, Timestamp::default(), &"n2".into(), spec.clone()).unwrap();
        let Op::Put { value, .. } = &made.ops[1] else { panic!("expected the network to be put: {made:?}") };
        let network: Network = codec::decode(value).unwrap();
        assert_eq!(network.spec, spec);
        assert_eq!((network.subnet.to_string().as_str(), network.number), ("10.0.0.0/24", 1));
        assert_eq!(network.spec.labels, Some(Labels::from([("a".to_owned(), "1".to_owned())])));
    }

    #[test]
    fn what_cannot_be_a_network_is_refused() {
        let world = with_network();
        for (body, expected) in [
            (json!({"Name": "net"}), "network with name net already exists"),
            (json!({"Name": "host"}), "network with name host already exists"),
            (json!({"Name": "a b"}), "name must be valid as a DNS name component"),
            (json!({"Name": ""}), "meta: name must be provided"),
            (json!({"Name": "x", "Ingress": true}), "ingress network (none) is already present"),
            (
                json!({"Name": "x", "IPAM": {"Config": [{"Subnet": "nonsense"}]}}),
                "Invalid subnet nonsense : invalid CIDR address: nonsense",
            ),
            (
                json!({"Name": "x", "IPAM": {"Config": [{"Subnet": "10.55.0.0/16"}]}}),
                "Pool overlaps with other one on this address space: 10.55.0.0/16 overlaps 10.55.0.0/24 of the network net; \
                 choose another --subnet",
            ),
        ] {
            let shown = body.to_string();
            let error = create(&world.snapshot, Timestamp::default(), &"n2".into(), asked(body)).unwrap_err();
            assert_eq!(error.to_string(), expected, "asking for {shown}");
        }
    }

    #[test]
    fn a_network_in_use_stays() {
        let mut world = with_network();
        assert!(remove(&world.snapshot, &world.snapshot.networks[&"n1".into()]).is_ok());
        let mut user = service("s1", 1);
        user.spec.task_template.extra.insert("Networks".into(), json!([{"Target": "n1"}]));
        world.put_service(&user);
        let error = remove(&world.snapshot, &world.snapshot.networks[&"n1".into()]).unwrap_err();
        assert_eq!(error.to_string(), "network n1 is in use by service s1");
        // The service leaves the network; its task stays until the update replaces it.
        world.put_service(&service("s1", 1));
        let mut task = task("t1", "s1", 1);
        task.attachments = vec![Attachment { network_id: "n1".into(), address: None, backend_id: None }];
        world.put_task(&task);
        let error = remove(&world.snapshot, &world.snapshot.networks[&"n1".into()]).unwrap_err();
        assert_eq!(error.to_string(), "network n1 is in use by task t1");
        task.desired_state = TaskState::Shutdown;
        world.put_task(&task);
        assert!(remove(&world.snapshot, &world.snapshot.networks[&"n1".into()]).is_ok(), "it is to stop");
    }

    #[test]
    fn pruning_leaves_what_is_used_ours_or_filtered_out() {
        let mut world = with_network();
        let unused = |world: &World, filters: &str, before: &[Timestamp]| {
            let filters = Filters::parse(Some(filters), &["label", "label!"]).unwrap();
            let found = super::unused(&world.snapshot, &filters, before);
            found.iter().map(|network| network.name.clone()).collect::<Vec<_>>()
        };
        let made = DateTime::from_timestamp_nanos(0);
        assert_eq!(unused(&world, "", &[]), ["net"]);
        assert_eq!(unused(&world, "", &[made]), ["net"]);
        assert!(unused(&world, "", &[made - chrono::TimeDelta::seconds(1)]).is_empty(), "made after that");
        assert!(unused(&world, r#"{"label":["a"]}"#, &[]).is_empty(), "without the label");
        assert_eq!(unused(&world, r#"{"label!":["a"]}"#, &[]), ["net"]);
        let mut user = service("s1", 1);
        user.spec.task_template.extra.insert("Networks".into(), json!([{"Target": "n1"}]));
        world.put_service(&user);
        assert!(unused(&world, "", &[]).is_empty(), "a service names it");
    }
}
