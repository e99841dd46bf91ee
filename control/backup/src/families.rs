//! Which keys of etcd are the cluster's state. Pure.

use mesh_state::keys::{self, Key};

/// Whether a backup has the key: it is the cluster's state, and not a sign of life of a process,
/// nor a place in this etcd.
///
/// A key that this version doesn't know is kept: a newer manager wrote it, and a backup must not
/// lose what it can't judge.
pub fn is_state(key: &str) -> bool {
    let Some(family) = keys::parse(key) else { return true };
    match family {
        // Bound to leases: they end with the process that wrote them.
        Key::Leader
        | Key::Manager(_)
        | Key::LogAsk(..)
        // Members of this etcd; another one has others.
        | Key::EtcdPlace(_)
        // Generations of this etcd's tables. Nodes acknowledge the next table anew.
        | Key::Ack(_) => false,
        Key::Cluster
        // Who was revoked since is admitted again on a new machine: the runbook says so.
        | Key::Client(_)
        | Key::Service(_)
        | Key::Spec(..)
        | Key::Name(..)
        | Key::Port(..)
        | Key::Node(_)
        // A node that was down stays so, and one that was heard has its time to report.
        | Key::Liveness(_)
        | Key::Clashes(_)
        | Key::HostNetworks(_)
        | Key::Task(_)
        | Key::Status(_)
        | Key::Network(_)
        | Key::Attachment(_)
        | Key::BackendCursor
        | Key::NetworkCursor
        | Key::MemberKeys
        | Key::Dependency(..)
        | Key::Reference(..) => true,
    }
}

/// The order in which keys are written to an empty store: a service's specs before the service, as
/// clients must not find a service that is newer than its spec, and the cluster's record last, as
/// it says that everything else is there.
pub fn rank(key: &str) -> u8 {
    match keys::parse(key) {
        Some(Key::Spec(..)) => 0,
        Some(Key::Service(_)) => 2,
        Some(Key::Cluster) => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::dependency::DependencyKind;

    use super::*;

    #[test]
    fn objects_are_state_and_signs_of_life_are_not() {
        let node = &"n".into();
        let (secret, id) = (DependencyKind::Secret, &"d".into());
        let state = [
            keys::CLUSTER.to_owned(),
            keys::service(&"s".into()),
            keys::task(&"t".into()),
            keys::node(node),
            keys::liveness(node),
            keys::dependency(secret, id),
            keys::sealed(secret, id),
            keys::reference(secret, id, &"s".into()),
            format!("{}later/x", keys::ROOT),
        ];
        for key in state {
            assert!(is_state(&key), "{key} is lost");
        }
        let passing = [
            keys::LEADER.to_owned(),
            keys::manager("m"),
            keys::etcd_place(node),
            keys::ack(node),
            keys::log_ask(node, "a"),
        ];
        for key in passing {
            assert!(!is_state(&key), "{key} is kept");
        }
    }

    #[test]
    fn the_clusters_record_comes_last_and_specs_come_before_services() {
        let (spec, service) = (keys::spec(&"s".into(), 1), keys::service(&"s".into()));
        let mut all = [keys::CLUSTER.to_owned(), service.clone(), keys::task(&"t".into()), spec.clone()];
        all.sort_by_key(|key| rank(key));
        assert_eq!(all, [spec, keys::task(&"t".into()), service, keys::CLUSTER.to_owned()]);
    }
}
