//! Problems of nodes.

use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::node::{Availability, Node, NodeRole, NodeState};

use super::{Kind, Problem, Severity, counted};
use crate::feed::snapshot::ClusterSnapshot;

/// A clock that is further off than this is a problem: certificates and stamps rely on clocks.
const CLOCK_OFF: Duration = Duration::from_secs(5);

/// The nodes' problems.
pub(super) fn problems(snapshot: &ClusterSnapshot) -> Vec<Problem> {
    snapshot.nodes.values().flat_map(|node| of_node(snapshot, node)).collect()
}

fn of_node(snapshot: &ClusterSnapshot, node: &Node) -> Vec<Problem> {
    let name = &node.description.hostname;
    let about = |severity, cause: String, since, cure: String| Problem {
        severity,
        kind: Kind::Node,
        id: node.id.to_string(),
        name: name.clone(),
        cause,
        since,
        cure,
    };
    let mut found = Vec::new();
    let since = snapshot.liveness.get(&node.id).map(|liveness| liveness.since);
    match snapshot.node_state(&node.id) {
        NodeState::Down => {
            // A worker that was drained before it went down is being looked after.
            let is_planned =
                node.spec.availability == Availability::Drain && node.spec.role == NodeRole::Worker;
            let severity = if is_planned { Severity::Warning } else { Severity::Error };
            found.push(about(severity, down(snapshot, node), since, cure_of_down(node)));
            return found;
        }
        NodeState::Silent => found.push(about(
            Severity::Warning,
            "is silent: it gets no new connections, and is down after three missed heartbeats".to_owned(),
            since,
            format!("on {name}: systemctl status mesh-agent; mesh check --node"),
        )),
        NodeState::Ready => {}
    }
    if !node.description.unfit.is_empty() {
        let cause = format!("takes no tasks: {}", node.description.unfit);
        found.push(about(Severity::Error, cause, None, format!("on {name}: mesh check --node")));
    }
    if let Some(clashes) = snapshot.clashes.get(&node.id) {
        for clash in &clashes.value {
            let cause = format!("port {}/{} is taken: {}", clash.port, clash.protocol, clash.reason);
            let cure = format!(
                "on {name}: ss -lnp | grep :{}; stop that program, or publish another port",
                clash.port
            );
            found.push(about(Severity::Warning, cause, None, cure));
        }
    }
    if let Some((cause, cure)) = clock(snapshot, node) {
        found.push(about(Severity::Warning, cause, None, cure));
    }
    found
}

fn down(snapshot: &ClusterSnapshot, node: &Node) -> String {
    let message =
        snapshot.liveness.get(&node.id).map_or("it was never heard", |liveness| liveness.message.as_str());
    let lost = snapshot.tasks_on(&node.id).filter(|task| crate::slots::is_wanted(task)).count();
    let tasks =
        if lost > 0 { format!("; {} of it are not replaced", counted(lost, "task")) } else { String::new() };
    let why = if message.is_empty() { String::new() } else { format!(" ({message})") };
    format!("is down{why}{tasks}")
}

fn cure_of_down(node: &Node) -> String {
    let name = &node.description.hostname;
    let gone = if node.spec.availability == Availability::Drain {
        format!("if it is gone for good: docker node rm {name}")
    } else {
        format!("or, if it is gone for good: docker node rm {name}")
    };
    format!("see that {name} runs and reaches a manager (systemctl status mesh-agent there), {gone}")
}

fn clock(snapshot: &ClusterSnapshot, node: &Node) -> Option<(String, String)> {
    let ahead = snapshot.clock_ahead_ms(&node.id)?;
    let off = Duration::from_millis(ahead.unsigned_abs());
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    (off > CLOCK_OFF).then(|| {
        let cause = format!("its clock is {:.1} s {way} its manager's", off.as_secs_f64());
        (cause, "set both clocks by NTP".to_owned())
    })
}

/// Since when a node has its state, for the story of a slot.
pub(super) fn since(snapshot: &ClusterSnapshot, node: &Node) -> Option<Timestamp> {
    snapshot.liveness.get(&node.id).map(|liveness| liveness.since)
}

#[cfg(test)]
mod tests {
    use mesh_state::cluster::Manager;
    use mesh_state::keys;

    use super::*;
    use crate::fixtures::{World, node};

    fn told(world: &World) -> Vec<(Severity, String)> {
        problems(&world.snapshot).into_iter().map(|problem| (problem.severity, problem.cause)).collect()
    }

    #[test]
    fn a_worker_that_was_drained_before_it_went_down_is_a_warning_and_another_node_an_error() {
        for (availability, role, expected) in [
            (Availability::Active, NodeRole::Worker, Severity::Error),
            (Availability::Drain, NodeRole::Worker, Severity::Warning),
            (Availability::Drain, NodeRole::Manager, Severity::Error),
        ] {
            let mut world = World::new();
            let mut value = node("n1");
            (value.spec.availability, value.spec.role) = (availability, role);
            world.put_node(&value);
            world.set_liveness(&value.id, NodeState::Down);
            assert_eq!(told(&world), [(expected, "is down".to_owned())], "{availability:?}, {role:?}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_warned_of() {
        for (ahead, expected) in [
            (5_000, None),
            (12_340, Some("its clock is 12.3 s ahead of its manager's")),
            (-7_000, Some("its clock is 7.0 s behind its manager's")),
        ] {
            let mut world = World::with_nodes(["n1"]);
            let nodes_off = [("n1".into(), ahead)].into();
            let manager = Manager { name: "m1".to_owned(), nodes_off, ..Manager::default() };
            world.put(keys::manager("m1"), &manager);
            let causes: Vec<String> = told(&world).into_iter().map(|(_, cause)| cause).collect();
            assert_eq!(causes.first().map(String::as_str), expected, "{ahead} ms");
        }
    }
}
