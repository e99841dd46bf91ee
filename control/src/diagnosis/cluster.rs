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
