//! Ports that mesh itself needs, which no service may publish: those of managers and their etcd,
//! and those of every node's agent.
//!
//! Pure. Managers announce theirs in `/managers/{name}`, agents in the node's description; so the
//! list follows the cluster's configuration.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use mesh_state::cluster::Manager;
use mesh_state::ids::NodeId;
use mesh_state::node::{NodeDescription, OwnPort, TUNNEL_PORT};
use mesh_state::spec::Protocol;

use crate::feed::snapshot::ClusterSnapshot;

/// The most ports of one node's agent that count: more than an agent has, so that no node can
/// reserve all ports.
const NODE_PORTS_MAX: usize = 16;

/// What the port of the remote Docker API is for, by which managers tell each other where it is.
pub const REMOTE_API: &str = "remote clients of the Docker API";

/// The ports that a manager listens on for nodes, for metrics and, if it does, for remote clients
/// of the Docker API, and those of its etcd.
pub fn of_manager(nodes: u16, metrics: u16, docker: Option<u16>, etcd: BTreeSet<u16>) -> Vec<OwnPort> {
    let own = [
        OwnPort::new(Protocol::Tcp, nodes, "agents' streams to managers"),
        OwnPort::new(Protocol::Tcp, metrics, OwnPort::MANAGER_METRICS),
    ];
    let docker = docker.map(|port| OwnPort::new(Protocol::Tcp, port, REMOTE_API));
    let etcd = etcd.into_iter().map(|port| OwnPort::new(Protocol::Tcp, port, "etcd"));
    own.into_iter().chain(docker).chain(etcd).collect()
}

/// Where living managers take remote clients of the Docker API, `IP:PORT` each.
pub fn remote_apis(snapshot: &ClusterSnapshot) -> Vec<String> {
    let address = |manager: &Manager| {
        let port = manager.own_ports.iter().find(|own| own.purpose == REMOTE_API)?.port;
        let node_service: SocketAddr = manager.address.parse().ok()?;
        Some(SocketAddr::new(node_service.ip(), port).to_string())
    };
    snapshot.managers.values().filter_map(|manager| address(manager)).collect()
}

/// The ports in URLs like `http://10.0.0.1:2379`.
pub fn of_urls(urls: &[String]) -> BTreeSet<u16> {
    urls.iter().filter_map(|url| mesh_state::store::port_of(url)).collect()
}

/// Every port that mesh needs somewhere in the cluster, with its purpose.
pub fn reserved(snapshot: &ClusterSnapshot) -> BTreeMap<(Protocol, u16), &str> {
    let managers = snapshot.managers.values().flat_map(|manager| &manager.value.own_ports);
    let agents =
        snapshot.nodes.values().flat_map(|node| node.value.description.own_ports.iter().take(NODE_PORTS_MAX));
    agents.chain(managers).map(|own| ((own.protocol, own.port), own.purpose.as_str())).collect()
}

/// The UDP port of the cluster's tunnel: the one that most nodes are set to, of equally many the
/// lowest.
pub fn tunnel(snapshot: &ClusterSnapshot) -> u16 {
    tunnel_of(snapshot.nodes.values().filter_map(|node| node.value.description.tunnel_port()))
}

/// The cluster's tunnel port if `node`, whose description is `described`, is set to another one
/// than most nodes: then it exchanges no packets with them.
pub fn other_tunnel(snapshot: &ClusterSnapshot, node: &NodeId, described: &NodeDescription) -> Option<u16> {
    let own = described.tunnel_port()?;
    let others = snapshot.nodes.iter().filter(|(id, _)| *id != node);
    let mut ports = others.filter_map(|(_, other)| other.value.description.tunnel_port()).peekable();
    ports.peek()?;
    let cluster = tunnel_of(ports);
    (cluster != own).then_some(cluster)
}

fn tunnel_of(ports: impl Iterator<Item = u16>) -> u16 {
    let mut nodes = BTreeMap::<u16, usize>::new();
    for port in ports {
        *nodes.entry(port).or_default() += 1;
    }
    let most = nodes.into_iter().max_by_key(|(port, nodes)| (*nodes, Reverse(*port)));
    most.map_or(TUNNEL_PORT, |(port, _)| port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::World;

    #[test]
    fn the_tunnels_port_is_the_one_that_most_nodes_are_set_to() {
        let mut world = World::with_nodes(["a", "b", "c", "d"]);
        assert_eq!(tunnel(&world.snapshot), TUNNEL_PORT, "no node has described itself");
        let described = |datapath: &str, port| NodeDescription {
            datapath: datapath.to_owned(),
            own_ports: vec![
                OwnPort::new(Protocol::Tcp, port, "the relay between nodes"),
                OwnPort::new(Protocol::Udp, port, OwnPort::TUNNEL),
            ],
            ..NodeDescription::default()
        };
        let nodes =
            [("a", "tc", 4790), ("b", "userspace", 4799), ("c", "xdp", 4790), ("d", "userspace", 4799)];
        for (node, datapath, port) in nodes {
            world.update_node(node, |node| node.description = described(datapath, port));
        }
        assert_eq!(tunnel(&world.snapshot), 4790, "those in userspace have no tunnel");
        let differs = |node: &str, datapath, port| {
            other_tunnel(&world.snapshot, &node.into(), &described(datapath, port))
        };
        assert_eq!(differs("d", "tc", 4799), Some(4790));
        assert_eq!(differs("d", "tc", 4790), None);
        assert_eq!(differs("d", "userspace", 4799), None, "it has no tunnel");
        world.update_node("a", |node| node.description = described("userspace", 4790));
        let alone = other_tunnel(&world.snapshot, &"c".into(), &described("tc", 4799));
        assert_eq!(alone, None, "the only node with a tunnel sets its port");
    }

    #[test]
    fn a_manager_announces_its_ports_and_its_etcds_whatever_they_are_set_to() {
        let urls = ["http://10.0.0.1:7002", "https://[fd00::1]:7003/", "http://etcd"];
        let own = of_manager(7000, 7001, Some(7004), of_urls(&urls.map(str::to_owned)));
        let ports: Vec<(u16, &str)> = own.iter().map(|own| (own.port, own.purpose.as_str())).collect();
        let expected = [
            (7000, "agents' streams to managers"),
            (7001, "managers' metrics"),
            (7004, REMOTE_API),
            (7002, "etcd"),
            (7003, "etcd"),
        ];
        assert_eq!(ports, expected);
    }
}
