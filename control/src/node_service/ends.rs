//! Ends of tasks that a node reports to every manager, whichever has its session: the store, by
//! which managers usually learn of each other's nodes, may be unreachable.
//!
//! Invariants: a node reports on its own tasks only, and ends only; what comes in is bounded.

use mesh_state::ids::{NodeId, TaskId};
use mesh_state::proto::TaskStatuses;
use mesh_state::report;
use tonic::Status;
use tracing::debug;

use super::recorder::Reports;
use crate::feed::snapshot::ClusterSnapshot;

/// The most ends in one call.
const ENDS_MAX: usize = 256;

/// Queues the ends that `node` reports, until the store holds them.
///
/// # Errors
/// There are too many of them.
pub(super) fn take(
    reports: &Reports,
    snapshot: &ClusterSnapshot,
    node: &NodeId,
    told: TaskStatuses,
) -> Result<(), Status> {
    if told.statuses.len() > ENDS_MAX {
        return Err(Status::invalid_argument(format!("more than {ENDS_MAX} ends in one call")));
    }
    for one in told.statuses {
        let task = TaskId::from(one.task_id);
        let runs_there = snapshot.tasks.get(&task).is_some_and(|task| {
            task.node_id.as_ref() == Some(node) && !snapshot.state_of(task).is_terminal()
        });
        if !runs_there {
            continue;
        }
        match report::read_status(task.as_str(), &one.status_json) {
            Ok(status) if status.state.is_terminal() => {
                debug!(%node, %task, state = status.state.as_str(), "a node reported the end of a task");
                reports.leave_status(node.clone(), task, status);
            }
            Ok(_) => {}
            Err(error) => {
                debug!(%node, %task, error = mesh_runtime::error_chain(&error), "can't read the end that a node reports");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mesh_state::proto;
    use mesh_state::task::{TaskState, TaskStatus};

    use super::*;
    use crate::fixtures::{World, service, task};

    #[tokio::test]
    async fn a_node_reports_ends_of_its_own_tasks_only() {
        let mut world = World::with_nodes(["a", "b"]);
        world.put_service(&service("web", 4));
        for (id, slot, node, state) in [
            ("mine", 1, "a", TaskState::Running),
            ("other", 2, "b", TaskState::Running),
            ("ended", 3, "a", TaskState::Failed),
            ("goes-on", 4, "a", TaskState::Running),
        ] {
            let mut one = task(id, "web", slot);
            one.node_id = Some(node.into());
            world.put_task(&one);
            world.report(&id.into(), state);
        }
        let tell = |id: &str, state| {
            let status = TaskStatus { state, ..TaskStatus::default() };
            let status_json = serde_json::to_string(&status).unwrap();
            proto::TaskStatus { task_id: id.to_owned(), status_json, number: 0 }
        };
        let reports = Reports::default();
        let failed = ["mine", "other", "ended", "unknown"].map(|id| tell(id, TaskState::Failed));
        let mut statuses = failed.to_vec();
        statuses.push(tell("goes-on", TaskState::Running));
        take(&reports, &world.snapshot, &"a".into(), TaskStatuses { statuses }).unwrap();
        let ended: Vec<_> = reports.ended().into_iter().collect();
        assert_eq!(ended, [("mine".into(), "a".into())]);

        let many = vec![tell("mine", TaskState::Failed); ENDS_MAX + 1];
        assert!(take(&reports, &world.snapshot, &"a".into(), TaskStatuses { statuses: many }).is_err());
    }
}
