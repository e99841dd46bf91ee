//! Where Prometheus finds the metrics of the cluster: every agent, and every manager that lives, in
//! the form of its HTTP service discovery.
//!
//! Invariants: pure; a target has an address, a name, an id, a role and a data path, and nothing
//! else of its node; a node stays a target until it is removed, so that one that is down shows as a
//! target that doesn't answer.

use std::net::{IpAddr, SocketAddr};

use mesh_state::cluster::Manager;
use mesh_state::node::{Node, OwnPort};
use mesh_state::spec::Protocol;
use serde::Serialize;

use crate::feed::snapshot::ClusterSnapshot;

/// The most nodes that become targets: as many as the kernel programs know.
const NODES_MAX: usize = 4096;
/// The longest name in a label: that of a host in DNS.
const NAME_CHARACTERS_MAX: usize = 253;

/// A group of targets with the same labels, as Prometheus reads it. Here each has one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TargetGroup {
    targets: Vec<String>,
    labels: TargetLabels,
}

/// What `relabel_configs` can use. Prometheus drops labels with this prefix afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct TargetLabels {
    #[serde(rename = "__meta_mesh_component")]
    component: &'static str,
    #[serde(rename = "__meta_mesh_node")]
    node: String,
    #[serde(rename = "__meta_mesh_node_id")]
    node_id: String,
    #[serde(rename = "__meta_mesh_role")]
    role: &'static str,
    #[serde(rename = "__meta_mesh_datapath")]
    datapath: String,
}

/// The targets of the cluster in `snapshot`, agents first.
pub fn of(snapshot: &ClusterSnapshot) -> Vec<TargetGroup> {
    let agents = snapshot.nodes.values().filter_map(|node| agent(&node.value)).take(NODES_MAX);
    let managers = snapshot.managers.values().filter_map(|known| {
        let node = known.node.as_ref().and_then(|id| snapshot.nodes.get(id));
        manager(&known.value, node.map(|node| &node.value))
    });
    agents.chain(managers.take(NODES_MAX)).collect()
}

/// An agent's metrics; `None` if its node has no address yet, or doesn't say its port.
fn agent(node: &Node) -> Option<TargetGroup> {
    let port = port_for(&node.description.own_ports, OwnPort::AGENT_METRICS)?;
    let role = node.spec.role.as_str();
    Some(group(node.address?, port, TargetLabels { role, ..labels_of("agent", node) }))
}

/// A manager's metrics, with the labels of the node that it runs on, if that is known.
fn manager(manager: &Manager, node: Option<&Node>) -> Option<TargetGroup> {
    let port = port_for(&manager.own_ports, OwnPort::MANAGER_METRICS)?;
    let node_service: SocketAddr = manager.address.parse().ok()?;
    let labels = match node {
        Some(node) => labels_of("control", node),
        None => TargetLabels {
            component: "control",
            node: short(&manager.name),
            node_id: String::new(),
            role: "manager",
            datapath: String::new(),
        },
    };
    Some(group(node_service.ip(), port, labels))
}

/// The labels of a node that runs a manager; an agent's role is that of its node.
fn labels_of(component: &'static str, node: &Node) -> TargetLabels {
    TargetLabels {
        component,
        node: short(&node.description.hostname),
        node_id: node.id.to_string(),
        role: "manager",
        datapath: short(&node.description.datapath),
    }
}

fn group(address: IpAddr, port: u16, labels: TargetLabels) -> TargetGroup {
    TargetGroup { targets: vec![SocketAddr::new(address, port).to_string()], labels }
}

fn port_for(own: &[OwnPort], purpose: &str) -> Option<u16> {
    let is_wanted = |own: &&OwnPort| own.protocol == Protocol::Tcp && own.purpose == purpose;
    own.iter().find(is_wanted).map(|own| own.port)
}

/// Nodes describe themselves: what they say is cut.
fn short(text: &str) -> String {
    text.chars().take(NAME_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use mesh_state::keys;
    use mesh_state::node::{NodeRole, NodeState};
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures::World;

    fn tcp(port: u16, purpose: &str) -> OwnPort {
        OwnPort::new(Protocol::Tcp, port, purpose)
    }

    fn shown(world: &World) -> Value {
        serde_json::to_value(of(&world.snapshot)).unwrap()
    }

    /// Two nodes, of which the first is a manager's, and that manager.
    fn world() -> World {
        let mut world = World::with_nodes(["a", "b"]);
        for (id, address) in [("a", "10.0.0.1"), ("b", "fd00::2")] {
            world.update_node(id, |node| {
                node.address = Some(address.parse().unwrap());
                node.description.datapath = "tc".to_owned();
                let tunnel = OwnPort::new(Protocol::Udp, 4799, OwnPort::TUNNEL);
                node.description.own_ports = vec![tunnel, tcp(9464, OwnPort::AGENT_METRICS)];
            });
        }
        world.update_node("a", |node| node.spec.role = NodeRole::Manager);
        let manager = Manager {
            name: "m".to_owned(),
            node: Some("a".into()),
            address: "10.0.0.1:2377".to_owned(),
            own_ports: vec![tcp(2377, "agents' streams to managers"), tcp(9465, OwnPort::MANAGER_METRICS)],
            ..Manager::default()
        };
        world.put(keys::manager("m"), &manager);
        world
    }

    fn expected(target: &str, component: &str, node: &str, role: &str) -> Value {
        json!({"targets": [target], "labels": {
            "__meta_mesh_component": component, "__meta_mesh_node": format!("host-{node}"),
            "__meta_mesh_node_id": node, "__meta_mesh_role": role, "__meta_mesh_datapath": "tc",
        }})
    }

    #[test]
    fn every_agent_and_every_living_manager_is_a_target() {
        let all = json!([
            expected("10.0.0.1:9464", "agent", "a", "manager"),
            expected("[fd00::2]:9464", "agent", "b", "worker"),
            expected("10.0.0.1:9465", "control", "a", "manager"),
        ]);
        assert_eq!(shown(&world()), all);
    }

    #[test]
    fn a_node_that_is_down_stays_and_one_without_a_port_is_left_out() {
        let mut world = world();
        world.set_liveness(&"b".into(), NodeState::Down);
        assert_eq!(shown(&world).as_array().unwrap().len(), 3, "it shows as a target that is down");
        world.update_node("b", |node| node.description.own_ports.clear());
        world.delete(keys::manager("m"));
        assert_eq!(shown(&world), json!([expected("10.0.0.1:9464", "agent", "a", "manager")]));
    }

    #[test]
    fn a_manager_without_a_node_has_its_own_name() {
        let mut world = world();
        world.update_node("a", |node| node.address = None);
        let mut alone = world.snapshot.managers["m"].value.clone();
        alone.node = None;
        world.put(keys::manager("m"), &alone);
        let labels = shown(&world)[1]["labels"].clone();
        assert_eq!(
            (&labels["__meta_mesh_node"], &labels["__meta_mesh_role"]),
            (&json!("m"), &json!("manager"))
        );
    }

    #[test]
    fn what_nodes_say_of_themselves_is_cut() {
        let mut world = world();
        world.update_node("a", |node| node.description.hostname = "x".repeat(60_000));
        let shown = shown(&world)[0]["labels"]["__meta_mesh_node"].as_str().unwrap().len();
        assert_eq!(shown, NAME_CHARACTERS_MAX);
    }
}
