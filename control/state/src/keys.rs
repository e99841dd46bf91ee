//! The only place where etcd paths exist.
//!
//! ```text
//! /mesh/v1/cluster                      one record
//! /mesh/v1/leader                       election, bound to a lease
//! /mesh/v1/managers/{name}              a manager that is alive, and its node, bound to its lease
//! /mesh/v1/etcd-places/{node}          a manager's place in the etcd that managers run
//! /mesh/v1/services/{id}
//! /mesh/v1/specs/{service}/{version}    immutable
//! /mesh/v1/names/{kind}/{name} → id     created iff absent, with the object
//! /mesh/v1/ports/{proto}/{port} → service
//! /mesh/v1/nodes/{id}
//! /mesh/v1/liveness/{id}                whether the node is heard
//! /mesh/v1/acks/{id}                    mesh-table generation that the node holds
//! /mesh/v1/clashes/{id}                 published ports that the node can't listen on
//! /mesh/v1/host-networks/{id}           networks that the node's host belongs to or has routes to
//! /mesh/v1/tasks/{id}
//! /mesh/v1/status/{id}                  observed state of a task
//! /mesh/v1/networks/{id}
//! /mesh/v1/clients/{name}               a client that uses the Docker API from another machine
//! /mesh/v1/attachments/{id}             a container that is no task, on a network
//! /mesh/v1/log-asks/{node}/{ask}        logs wanted of another manager's node, on a short lease
//! /mesh/v1/backend-cursor               the backend id given last
//! /mesh/v1/network-cursor               the subnet and the number given last to a network
//! /mesh/v1/member-keys                  which secrets members share, without the secrets
//! /mesh/v1/{secrets,configs}/{id}       without the data
//! /mesh/v1/refs/{secrets,configs}/{id}/{service}   guards removal
//! /mesh/sealed/v1/{secrets,configs}/{id}           the data, sealed; not watched
//! ```

use crate::dependency::DependencyKind;
use crate::ids::{AttachmentId, DependencyId, NetworkId, NodeId, ServiceId, TaskId};
use crate::spec::Protocol;

/// The prefix of all keys that managers watch.
pub const ROOT: &str = "/mesh/v1/";

/// The prefix of all keys, watched or not.
pub const EVERYTHING: &str = "/mesh/";

/// The prefix of sealed data.
const SEALED_ROOT: &str = "/mesh/sealed/v1/";

/// The cluster's record.
pub const CLUSTER: &str = "/mesh/v1/cluster";

/// The leader's key.
pub const LEADER: &str = "/mesh/v1/leader";

/// A living manager.
pub fn manager(name: &str) -> String {
    format!("{ROOT}managers/{name}")
}

/// A manager's place in the etcd that managers run, by its node.
pub fn etcd_place(node: &NodeId) -> String {
    format!("{ROOT}etcd-places/{node}")
}

/// A remote client of the Docker API.
pub fn client(name: &str) -> String {
    format!("{ROOT}clients/{name}")
}

/// The backend id given last.
pub const BACKEND_CURSOR: &str = "/mesh/v1/backend-cursor";

/// The subnet and the number given last to a network.
pub const NETWORK_CURSOR: &str = "/mesh/v1/network-cursor";

/// The secrets that members share.
pub const MEMBER_KEYS: &str = "/mesh/v1/member-keys";

/// The key of a service's record.
pub fn service(id: &ServiceId) -> String {
    format!("{ROOT}services/{id}")
}

/// One version of a service's spec.
pub fn spec(service: &ServiceId, version: u64) -> String {
    format!("{ROOT}specs/{service}/{version}")
}

/// A name's claim. `kind` is the plural noun, as in `services`.
pub fn name(kind: &str, name: &str) -> String {
    format!("{ROOT}names/{kind}/{name}")
}

/// A published port's claim.
pub fn port(protocol: Protocol, port: u16) -> String {
    format!("{ROOT}ports/{protocol}/{port}")
}

/// The key of a node's record.
pub fn node(id: &NodeId) -> String {
    format!("{ROOT}nodes/{id}")
}

/// Whether a node is heard.
pub fn liveness(id: &NodeId) -> String {
    format!("{ROOT}liveness/{id}")
}

/// The mesh-table generation a node has acknowledged.
pub fn ack(id: &NodeId) -> String {
    format!("{ROOT}acks/{id}")
}

/// Published ports that a node can't listen on.
pub fn clashes(id: &NodeId) -> String {
    format!("{ROOT}clashes/{id}")
}

/// The networks of a node's host.
pub fn host_networks(id: &NodeId) -> String {
    format!("{ROOT}host-networks/{id}")
}

/// The key of a task's record.
pub fn task(id: &TaskId) -> String {
    format!("{ROOT}tasks/{id}")
}

/// A task's observed state.
pub fn status(id: &TaskId) -> String {
    format!("{ROOT}status/{id}")
}

/// The key of a network's record.
pub fn network(id: &NetworkId) -> String {
    format!("{ROOT}networks/{id}")
}

/// A container that is no task, on a network.
pub fn attachment(id: &AttachmentId) -> String {
    format!("{ROOT}attachments/{id}")
}

/// A secret or a config.
pub fn dependency(kind: DependencyKind, id: &DependencyId) -> String {
    format!("{ROOT}{}/{id}", kind.plural())
}

/// The sealed data of a secret or a config. It is not below [`ROOT`].
pub fn sealed(kind: DependencyKind, id: &DependencyId) -> String {
    format!("{SEALED_ROOT}{}/{id}", kind.plural())
}

/// The secret or config whose sealed data a key holds.
pub fn parse_sealed(key: &str) -> Option<(DependencyKind, DependencyId)> {
    let (plural, id) = key.strip_prefix(SEALED_ROOT)?.split_once('/')?;
    Some((DependencyKind::of_plural(plural)?, id.into()))
}

/// The prefix of all references to a secret or a config.
pub fn references(kind: DependencyKind, id: &DependencyId) -> String {
    format!("{ROOT}refs/{}/{id}/", kind.plural())
}

/// A service's reference to a secret or a config.
pub fn reference(kind: DependencyKind, id: &DependencyId, service: &ServiceId) -> String {
    format!("{}{service}", references(kind, id))
}

/// A request for logs of a node.
pub fn log_ask(node: &NodeId, ask: &str) -> String {
    format!("{ROOT}log-asks/{node}/{ask}")
}

/// A parsed key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The cluster's record.
    Cluster,
    /// The key that the leader holds by its lease.
    Leader,
    /// A living manager.
    Manager(String),
    /// The place of a node's manager in etcd.
    EtcdPlace(NodeId),
    /// A remote client of the Docker API, by name.
    Client(String),
    /// The record of a service.
    Service(ServiceId),
    /// A version of a service's spec.
    Spec(ServiceId, u64),
    /// A name's claim: kind and name.
    Name(String, String),
    /// A port's claim: protocol and port.
    Port(String, u16),
    /// The record of a node.
    Node(NodeId),
    /// A node's liveness.
    Liveness(NodeId),
    /// A node's acknowledged generation.
    Ack(NodeId),
    /// Published ports that a node can't listen on.
    Clashes(NodeId),
    /// The networks of a node's host.
    HostNetworks(NodeId),
    /// The record of a task.
    Task(TaskId),
    /// A task's observed state.
    Status(TaskId),
    /// The record of a network.
    Network(NetworkId),
    /// A container that is no task, on a network.
    Attachment(AttachmentId),
    /// A request for logs of a node: the node and the request.
    LogAsk(NodeId, String),
    /// The backend id given last.
    BackendCursor,
    /// The subnet and the number given last to a network.
    NetworkCursor,
    /// The secrets that members share.
    MemberKeys,
    /// A secret or a config.
    Dependency(DependencyKind, DependencyId),
    /// A service's reference to a secret or a config.
    Reference(DependencyKind, DependencyId, ServiceId),
}

/// Parses a key; `None` for one that this version doesn't know.
pub fn parse(key: &str) -> Option<Key> {
    let mut parts = key.strip_prefix(ROOT)?.split('/');
    let parsed = match (parts.next()?, parts.next(), parts.next()) {
        ("refs", Some(plural), Some(id)) => {
            Key::Reference(DependencyKind::of_plural(plural)?, id.into(), parts.next()?.into())
        }
        (plural @ ("secrets" | "configs"), Some(id), None) => {
            Key::Dependency(DependencyKind::of_plural(plural)?, id.into())
        }
        ("cluster", None, None) => Key::Cluster,
        ("leader", None, None) => Key::Leader,
        ("managers", Some(name), None) => Key::Manager(name.to_owned()),
        ("etcd-places", Some(node), None) => Key::EtcdPlace(node.into()),
        ("clients", Some(name), None) => Key::Client(name.to_owned()),
        ("backend-cursor", None, None) => Key::BackendCursor,
        ("network-cursor", None, None) => Key::NetworkCursor,
        ("member-keys", None, None) => Key::MemberKeys,
        ("services", Some(id), None) => Key::Service(id.into()),
        ("specs", Some(service), Some(version)) => Key::Spec(service.into(), version.parse().ok()?),
        ("names", Some(kind), Some(name)) => Key::Name(kind.to_owned(), name.to_owned()),
        ("ports", Some(protocol), Some(port)) => Key::Port(protocol.to_owned(), port.parse().ok()?),
        ("nodes", Some(id), None) => Key::Node(id.into()),
        ("liveness", Some(id), None) => Key::Liveness(id.into()),
        ("acks", Some(id), None) => Key::Ack(id.into()),
        ("clashes", Some(id), None) => Key::Clashes(id.into()),
        ("host-networks", Some(id), None) => Key::HostNetworks(id.into()),
        ("tasks", Some(id), None) => Key::Task(id.into()),
        ("status", Some(id), None) => Key::Status(id.into()),
        ("networks", Some(id), None) => Key::Network(id.into()),
        ("attachments", Some(id), None) => Key::Attachment(id.into()),
        ("log-asks", Some(node), Some(ask)) => Key::LogAsk(node.into(), ask.to_owned()),
        _ => return None,
    };
    parts.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back() {
        let (service_id, task_id, node_id) = (ServiceId::from("s1"), TaskId::from("t1"), NodeId::from("n1"));
        let cases = [
            (CLUSTER.to_owned(), Key::Cluster),
            (LEADER.to_owned(), Key::Leader),
            (manager("m"), Key::Manager("m".into())),
            (etcd_place(&node_id), Key::EtcdPlace(node_id.clone())),
            (client("alice"), Key::Client("alice".into())),
            (BACKEND_CURSOR.to_owned(), Key::BackendCursor),
            (NETWORK_CURSOR.to_owned(), Key::NetworkCursor),
            (MEMBER_KEYS.to_owned(), Key::MemberKeys),
            (service(&service_id), Key::Service(service_id.clone())),
            (spec(&service_id, 7), Key::Spec(service_id.clone(), 7)),
            (name("services", "web"), Key::Name("services".into(), "web".into())),
            (port(Protocol::Tcp, 80), Key::Port("tcp".into(), 80)),
            (node(&node_id), Key::Node(node_id.clone())),
            (liveness(&node_id), Key::Liveness(node_id.clone())),
            (ack(&node_id), Key::Ack(node_id.clone())),
            (clashes(&node_id), Key::Clashes(node_id.clone())),
            (host_networks(&node_id), Key::HostNetworks(node_id.clone())),
            (task(&task_id), Key::Task(task_id.clone())),
            (status(&task_id), Key::Status(task_id)),
            (network(&NetworkId::from("w")), Key::Network("w".into())),
            (attachment(&AttachmentId::from("x")), Key::Attachment("x".into())),
            (
                dependency(DependencyKind::Secret, &"d".into()),
                Key::Dependency(DependencyKind::Secret, "d".into()),
            ),
            (
                reference(DependencyKind::Config, &"d".into(), &service_id),
                Key::Reference(DependencyKind::Config, "d".into(), service_id),
            ),
            (log_ask(&node_id, "a1"), Key::LogAsk(node_id, "a1".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(&text), Some(expected), "reading {text}");
        }
        assert_eq!(parse("/mesh/v1/later/x"), None);
        assert_eq!(parse("/elsewhere"), None);
        let data = sealed(DependencyKind::Secret, &"d".into());
        assert_eq!(parse_sealed(&data), Some((DependencyKind::Secret, "d".into())));
        assert!(data.starts_with(EVERYTHING) && ROOT.starts_with(EVERYTHING));
        assert!(!data.starts_with(ROOT), "sealed data must not be watched: {data}");
    }
}
