//! Problems of managers and their store.

use super::{Kind, Problem, Severity, counted};
use crate::feed::snapshot::ClusterSnapshot;

/// The managers' problems.
pub(super) fn problems(snapshot: &ClusterSnapshot, is_connected: bool) -> Vec<Problem> {
    let mut found = Vec::new();
    if !is_connected {
        found.push(problem(
            Severity::Error,
            "this manager can't reach etcd or its quorum: what it shows may be old, and nothing can be changed".to_owned(),
            "start the other managers, or see docs/operations.md, When quorum is lost; mesh check --cluster",
        ));
    } else if snapshot.leader.is_none() {
        found.push(problem(
            Severity::Error,
            "no manager leads: nothing is scheduled".to_owned(),
            "mesh check --cluster; systemctl status mesh-control on each manager",
        ));
    }
    let places = snapshot.etcd_places.len();
    if places == 2 {
        found.push(problem(
            Severity::Warning,
            "there are two managers: the loss of either stops all changes".to_owned(),
            "docker node promote a third one, or docker node demote one of the two",
        ));
    }
    if !snapshot.unreadable.is_empty() {
        found.push(problem(
            Severity::Warning,
            format!(
                "{} in etcd can't be read: a newer version wrote them?",
                counted(snapshot.unreadable.len(), "record")
            ),
            "run the same version of mesh-control on all managers",
        ));
    }
    found
}

fn problem(severity: Severity, cause: String, cure: &str) -> Problem {
    Problem {
        severity,
        kind: Kind::Cluster,
        id: String::new(),
        name: String::new(),
        cause,
        since: None,
        cure: cure.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::cluster::Manager;
    use mesh_state::keys;

    use super::*;
    use crate::fixtures::World;

    #[test]
    fn a_cluster_without_a_leader_or_its_store_says_so_and_an_ordinary_one_nothing() {
        let mut world = World::new();
        let told = |world: &World, is_connected| {
            let found = problems(&world.snapshot, is_connected);
            found.into_iter().map(|problem| problem.cause).collect::<Vec<_>>()
        };
        assert_eq!(told(&world, true), ["no manager leads: nothing is scheduled"]);
        assert!(told(&world, false)[0].contains("can't reach etcd"), "saw {:?}", told(&world, false));
        world.put(keys::LEADER.to_owned(), &Manager { name: "m1".to_owned(), ..Manager::default() });
        assert_eq!(told(&world, true), Vec::<String>::new());
    }
}
