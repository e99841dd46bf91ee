//! The error that tasks show when nodes can't listen on their service's published ports.
//!
//! Pure. Every running task shows it, wherever it runs: the port is the service's on all nodes.

use mesh_state::node::PortClash;
use mesh_state::task::{Task, TaskState};

use crate::feed::snapshot::ClusterSnapshot;

/// The clashes of the published ports of a running task's service; `None` if there are none.
pub(crate) fn of_task(snapshot: &ClusterSnapshot, task: &Task) -> Option<String> {
    if snapshot.clashes.is_empty() || snapshot.state_of(task) != TaskState::Running {
        return None;
    }
    let is_ours = |clash: &PortClash| {
        let claim = snapshot.ports.get(&(clash.protocol.to_string(), clash.port));
        claim.is_some_and(|claim| claim.value == task.service_id)
    };
    let nodes = snapshot.clashes.iter().filter(|(node, _)| !snapshot.is_lost(node));
    let words: Vec<String> = nodes
        .flat_map(|(node, clashes)| {
            let name = snapshot.nodes.get(node).map_or("", |node| node.description.hostname.as_str());
            clashes.iter().filter(|clash| is_ours(clash)).map(move |clash| words(name, clash))
        })
        .collect();
    (!words.is_empty()).then(|| words.join("; "))
}

fn words(node: &str, clash: &PortClash) -> String {
    format!("port {}/{} on {node}: {}", clash.port, clash.protocol, clash.reason)
}

#[cfg(test)]
mod tests {
    use mesh_state::ids::ServiceId;
    use mesh_state::keys;
    use mesh_state::node::NodeState;
    use mesh_state::spec::Protocol;

    use super::*;
    use crate::fixtures::{World, service, task};

    #[test]
    fn a_running_task_shows_the_clashes_of_its_service() {
        let mut world = World::with_nodes(["a", "b"]);
        let mut web = service("web", 1);
        web.spec.endpoint_spec = serde_json::from_value(serde_json::json!({"Ports": [
            {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
        ]}))
        .unwrap();
        world.put_service(&web);
        world.put(keys::port(Protocol::Tcp, 8080), &web.id);
        world.put(keys::port(Protocol::Tcp, 9090), &ServiceId::from("other"));
        let mut first = task("t1", "web", 1);
        first.node_id = Some("a".into());
        world.put_task(&first);
        let seen = |world: &World| of_task(&world.snapshot, &first);
        let clash = |protocol, port| PortClash { protocol, port, reason: "taken".to_owned() };
        let clashes = [clash(Protocol::Tcp, 8080), clash(Protocol::Udp, 8080), clash(Protocol::Tcp, 9090)];
        world.put(keys::clashes(&"b".into()), &clashes);
        assert_eq!(seen(&world), None, "the task doesn't run yet");
        world.report(&"t1".into(), TaskState::Running);
        assert_eq!(seen(&world).as_deref(), Some("port 8080/tcp on host-b: taken"));
        world.put(keys::clashes(&"a".into()), &clashes[..1].to_vec());
        let both = "port 8080/tcp on host-a: taken; port 8080/tcp on host-b: taken";
        assert_eq!(seen(&world).as_deref(), Some(both));
        world.set_liveness(&"b".into(), NodeState::Down);
        assert_eq!(seen(&world).as_deref(), Some("port 8080/tcp on host-a: taken"), "b is lost");
        world.put(keys::clashes(&"a".into()), &Vec::<PortClash>::new());
        assert_eq!(seen(&world), None, "the clashes are over");
    }
}
