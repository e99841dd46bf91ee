//! Selects the tasks whose logs a client gets for a service or a task, and the nodes that hold
//! them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::ids::{NodeId, ServiceId, TaskId};
use mesh_state::task::{Task, TaskState};

use crate::feed::snapshot::ClusterSnapshot;

/// The object whose logs a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Every task of a service.
    Service(ServiceId),
    /// One task.
    Task(TaskId),
}

/// The logs to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Tasks that may have a container, by node.
    pub(crate) on_nodes: BTreeMap<NodeId, BTreeSet<TaskId>>,
    /// Tasks that no node has yet.
    pub(crate) unscheduled: BTreeSet<TaskId>,
    /// Whether further tasks may appear.
    pub(crate) may_grow: bool,
}

/// The logs to read now. A client that follows gets a task as soon as it may have a container; one
/// that doesn't gets the tasks that ran.
pub(crate) fn select(snapshot: &ClusterSnapshot, subject: &Subject, follow: bool) -> Selection {
    let mut selection = Selection::default();
    match subject {
        Subject::Service(id) => {
            selection.may_grow = snapshot.services.contains_key(id);
            let least = if follow { TaskState::Starting } else { TaskState::Running };
            let ran = snapshot.tasks_of(id).filter(|task| {
                let state = snapshot.state_of(task);
                // The node of an orphaned task is gone, and its logs with it.
                state >= least && state != TaskState::Orphaned
            });
            ran.for_each(|task| selection.add(task));
        }
        Subject::Task(id) => {
            let Some(task) = snapshot.tasks.get(id) else { return selection };
            let state = snapshot.state_of(task);
            selection.may_grow = !state.is_terminal();
            if !follow || state >= TaskState::Starting {
                selection.add(task);
            }
        }
    }
    selection
}

impl Selection {
    fn add(&mut self, task: &Task) {
        match &task.node_id {
            Some(node) => self.on_nodes.entry(node.clone()).or_default().insert(task.id.clone()),
            None => self.unscheduled.insert(task.id.clone()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{World, service, task};

    /// Service `web` with tasks in these states on nodes a and b, and `t0` without a node.
    fn world(states: &[TaskState]) -> World {
        let mut world = World::with_nodes(["a", "b"]);
        world.put_service(&service("web", 2));
        world.put_task(&task("t0", "web", 9));
        for (index, state) in states.iter().enumerate() {
            let id = format!("t{}", index + 1);
            let mut one = task(&id, "web", index as u64 + 1);
            one.node_id = Some(if index % 2 == 0 { "a".into() } else { "b".into() });
            world.put_task(&one);
            world.report(&id.as_str().into(), *state);
        }
        world
    }

    fn selected(world: &World, subject: &Subject, follow: bool) -> Vec<String> {
        let selection = select(&world.snapshot, subject, follow);
        let named = selection
            .on_nodes
            .iter()
            .flat_map(|(node, tasks)| tasks.iter().map(move |task| format!("{node}:{task}")));
        named.chain(selection.unscheduled.iter().map(|task| format!("-:{task}"))).collect()
    }

    #[test]
    fn a_services_logs_are_those_of_tasks_that_ran() {
        let web = Subject::Service("web".into());
        let world = world(&[TaskState::Running, TaskState::Starting, TaskState::Failed, TaskState::Orphaned]);
        assert_eq!(selected(&world, &web, false), ["a:t1", "a:t3"]);
        assert_eq!(
            selected(&world, &web, true),
            ["a:t1", "a:t3", "b:t2"],
            "a follower also gets tasks that are starting"
        );
        assert!(select(&world.snapshot, &web, true).may_grow);
    }

    #[test]
    fn one_task_is_asked_for_on_its_node() {
        let world = world(&[TaskState::Preparing, TaskState::Complete]);
        let of = |id: &str| Subject::Task(id.into());
        assert_eq!(selected(&world, &of("t1"), false), ["a:t1"]);
        assert_eq!(selected(&world, &of("t1"), true), [""; 0], "it has no container to follow yet");
        assert_eq!(selected(&world, &of("t0"), false), ["-:t0"]);
        assert!(select(&world.snapshot, &of("t1"), true).may_grow);
        assert!(!select(&world.snapshot, &of("t2"), true).may_grow, "a task that ended writes nothing more");
        assert_eq!(select(&world.snapshot, &of("gone"), true), Selection::default());
    }
}
