//! Stops tasks that may not stay on their node: it no longer meets their constraints, after a label
//! or a role was changed, or can't carry their networks any more, after its agent was restarted
//! with `--datapath userspace` or without what encryption needs.
//!
//! It decides from the spec that each task was made from, and from its node as it is now. A changed
//! spec is the updater's: judged by the new one, all tasks would stop at once instead of a few at a
//! time.
//!
//! It checks nothing else. What a node can run out of (CPUs, memory, host ports) and the platform
//! were checked when the task was placed. A node that reports fewer CPUs than before keeps its
//! tasks: they run, and stopping them would be an outage that no user asked for. The scheduler just
//! places no more tasks there. A constraint, however, is an order of the user. And a task whose
//! networks its node doesn't carry runs without reaching anyone.
//!
//! It can't see whether another node has room. So a task may stop and find no other node, and its
//! slot waits with the scheduler's reason. That is what the user asked for, too: the task must not
//! run there.
//!
//! Invariants: a task is judged by the spec that it was made from; by constraints, a task whose
//! spec is not stored is left alone.
//!
//! Left to others: filling the slot again (`replicated`, `global`).

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::ServiceId;
use mesh_state::task::{Task, TaskState};
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::{Action, Plan};
use crate::slots;
use crate::slots::create::stopped;
use crate::slots::eligible::{Suits, has_programs};

/// Why a task must leave its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misfit {
    /// The node no longer meets the task's constraints.
    Constraints,
    /// The task is on networks, and the node has no kernel programs to carry them.
    Networks,
    /// The task is on an encrypted network, and the node can't encrypt.
    Encryption,
}

impl Misfit {
    /// The error that `docker service ps` shows for such a task.
    const fn error(self) -> &'static str {
        match self {
            Self::Constraints => "assigned node no longer meets constraints",
            Self::Networks => "assigned node no longer has kernel programs for overlay networks",
            Self::Encryption => "assigned node can no longer encrypt overlay networks",
        }
    }
}

/// Stops tasks that may not stay on their node.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut read: BTreeMap<(&ServiceId, u64), Option<Suits>> = BTreeMap::new();
    for task in snapshot.tasks.values().filter(|task| slots::is_wanted(task)) {
        let Some(node) = task.node_id.as_ref().and_then(|id| snapshot.nodes.get(id)) else { continue };
        let suits = read
            .entry((&task.service_id, task.spec_version))
            .or_insert_with(|| snapshot.spec_of(task).map(|spec| Suits::new(&spec.task_template)));
        let misfit = if suits.as_ref().is_some_and(|suits| !suits.constraints_hold(node)) {
            Misfit::Constraints
        } else if !task.attachments.is_empty() && !has_programs(node) {
            Misfit::Networks
        } else if node.description.encryption.is_none() && is_on_encrypted_network(snapshot, task) {
            Misfit::Encryption
        } else {
            continue;
        };
        if snapshot.state_of(task).is_terminal() {
            continue;
        }
        plan.reasons.push(format!("task {} stops: node {}: {}", task.id, node.id, misfit.error()));
        let mut action = stopped(now, task, TaskState::Shutdown);
        if let Action::UpdateTask { task, .. } = &mut action {
            misfit.error().clone_into(&mut task.leader_status.err);
        }
        plan.actions.push(action);
    }
    plan
}

fn is_on_encrypted_network(snapshot: &ClusterSnapshot, task: &Task) -> bool {
    let mut networks = task.attachments.iter().filter_map(|place| snapshot.networks.get(&place.network_id));
    networks.any(|network| network.is_encrypted())
}

#[cfg(test)]
mod tests {
    use mesh_state::network::{Attachment, ENCRYPTED};
    use mesh_state::node::EncryptionEnd;

    use super::*;
    use crate::fixtures::{World, join, network, service, task};

    #[test]
    fn a_changed_label_stops_the_task_with_a_reason() {
        let mut world = World::with_nodes(["a"]);
        world.update_node("a", |node| drop(node.spec.labels.insert("zone".to_owned(), "in".to_owned())));
        let mut web = service("web", 1);
        web.spec
            .task_template
            .placement
            .get_or_insert_default()
            .constraints
            .push("node.labels.zone==in".to_owned());
        world.put_service(&web);
        let mut running = task("t", "web", 1);
        running.node_id = Some("a".into());
        world.put_task(&running);
        world.report(&running.id, TaskState::Running);
        assert_eq!(world.run(plan), Plan::default(), "the node meets the constraint");

        world.update_node("a", |node| drop(node.spec.labels.insert("zone".to_owned(), "out".to_owned())));
        world.run(plan);
        let stopped = &world.snapshot.tasks[&running.id];
        assert_eq!((stopped.desired_state, stopped.shutdown_at), (TaskState::Shutdown, Some(world.now)));
        world.report(&running.id, TaskState::Shutdown);
        assert_eq!(world.snapshot.error_of(&world.snapshot.tasks[&running.id]), Misfit::Constraints.error());
        assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    }

    #[test]
    fn a_changed_spec_is_left_to_the_updater() {
        let mut world = World::with_nodes(["a"]);
        world.put_service(&service("web", 1));
        let mut running = task("t", "web", 1);
        running.node_id = Some("a".into());
        world.put_task(&running);
        world.update_service("web", |spec| {
            let placement = spec.task_template.placement.get_or_insert_default();
            placement.constraints.push("node.labels.zone==in".to_owned());
        });
        assert_eq!(world.run(plan), Plan::default());
    }

    #[test]
    fn a_node_that_turns_to_userspace_keeps_no_task_with_networks() {
        let mut world = World::with_nodes(["a"]);
        world.put_network(&network("app", "10.0.5.0/24", 1));
        let mut web = service("web", 1);
        join(&mut web.spec, &["app"]);
        world.put_service(&web);
        world.put_service(&service("plain", 1));
        for (id, of) in [("on-app", "web"), ("on-none", "plain")] {
            let mut running = task(id, of, 1);
            running.node_id = Some("a".into());
            if of == "web" {
                let address = Some("10.0.5.7".parse().unwrap());
                running.attachments =
                    vec![Attachment { network_id: "app".into(), address, backend_id: None }];
            }
            world.put_task(&running);
            world.report(&running.id, TaskState::Running);
        }
        for datapath in ["xdp", "tc"] {
            world.update_node("a", |node| datapath.clone_into(&mut node.description.datapath));
            assert_eq!(world.run(plan), Plan::default(), "{datapath} carries networks");
        }
        world.update_node("a", |node| "userspace".clone_into(&mut node.description.datapath));
        world.run(plan);
        let desired = |id: &str| world.snapshot.tasks[&id.into()].desired_state;
        assert_eq!((desired("on-app"), desired("on-none")), (TaskState::Shutdown, TaskState::Running));
        assert_eq!(world.snapshot.tasks[&"on-app".into()].leader_status.err, Misfit::Networks.error());
        assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    }

    #[test]
    fn a_node_that_can_no_longer_encrypt_keeps_no_task_on_an_encrypted_network() {
        let mut world = World::with_nodes(["a"]);
        world.put_network(&network("app", "10.0.5.0/24", 1));
        world.put_network(&network("sealed", "10.0.6.0/24", 2 | ENCRYPTED));
        for name in ["app", "sealed"] {
            let mut joined = service(name, 1);
            join(&mut joined.spec, &[name]);
            world.put_service(&joined);
            let mut running = task(&format!("on-{name}"), name, 1);
            running.node_id = Some("a".into());
            running.attachments =
                vec![Attachment { network_id: name.into(), address: None, backend_id: None }];
            world.put_task(&running);
            world.report(&running.id, TaskState::Running);
        }
        let end = EncryptionEnd { public_key: "k".to_owned(), port: 4801 };
        world.update_node("a", |node| node.description.encryption = Some(end));
        assert_eq!(world.run(plan), Plan::default(), "the node encrypts");
        world.update_node("a", |node| node.description.encryption = None);
        world.run(plan);
        let desired = |id: &str| world.snapshot.tasks[&id.into()].desired_state;
        assert_eq!((desired("on-sealed"), desired("on-app")), (TaskState::Shutdown, TaskState::Running));
        assert_eq!(world.snapshot.tasks[&"on-sealed".into()].leader_status.err, Misfit::Encryption.error());
        assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    }
}
