//! A service's networks: requests name them by id or name, stored specs by id.
//!
//! Invariants: pure; a service that begins to name a network rewrites the network's record, so that
//! one of them fails its compare if the network is removed at the same moment.
//!
//! Left to others: the service's virtual IPs and its tasks' addresses on a network.

use std::collections::BTreeSet;

use mesh_state::codec;
use mesh_state::keys;
use mesh_state::spec::ServiceSpec;
use mesh_state::store::{Compare, Op};
use serde_json::Value;

use crate::api::access::Transaction;
use crate::api::error::ApiError;
use crate::api::networks;
use crate::feed::snapshot::ClusterSnapshot;

/// The networks in a spec: by id if it is stored, by id or name if it comes from a client.
pub(crate) fn named_by(spec: &ServiceSpec) -> Vec<&str> {
    let lists = [spec.task_template.extra.get("Networks"), spec.extra.get("Networks")];
    let attachments = lists.into_iter().flatten().filter_map(Value::as_array).flatten();
    attachments.filter_map(|attachment| attachment.get("Target").and_then(Value::as_str)).collect()
}

/// Replaces names by ids, and rewrites the records of networks that `before` doesn't name yet.
///
/// # Errors
/// A network does not exist, or is not for services.
pub(crate) fn resolve(
    snapshot: &ClusterSnapshot,
    before: Option<&ServiceSpec>,
    spec: &mut ServiceSpec,
    transaction: &mut Transaction,
) -> Result<(), ApiError> {
    let lists = [spec.task_template.extra.get_mut("Networks"), spec.extra.get_mut("Networks")];
    for attachment in lists.into_iter().flatten().filter_map(Value::as_array_mut).flatten() {
        let Some(target) = attachment.get_mut("Target") else { continue };
        let network = networks::find(snapshot, target.as_str().unwrap_or_default())?;
        if network.ingress {
            return Err(ApiError::Invalid(
                "Service cannot be explicitly attached to the ingress network \"ingress\"".to_owned(),
            ));
        }
        *target = Value::String(network.id.to_string());
    }
    let known = before.map(named_by).unwrap_or_default();
    for id in named_by(spec).into_iter().collect::<BTreeSet<_>>() {
        if let Some(network) = snapshot.networks.get(&id.into()).filter(|_| !known.contains(&id)) {
            let key = keys::network(&network.id);
            transaction.compares.push(Compare::ModRevision(key.clone(), network.mod_revision));
            transaction.ops.push(Op::put(key, codec::encode(&network.value)?));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesh_state::Timestamp;
    use mesh_state::network::{Network, NetworkSpec};
    use serde_json::json;

    use super::*;
    use crate::fixtures::{World, service};

    fn world() -> World {
        let mut world = World::new();
        for (id, name, ingress) in [("n1", "net", false), ("n2", "ingress", true)] {
            let network = Network {
                id: id.into(),
                name: name.into(),
                ingress,
                subnet: "10.128.0.0/12".parse().unwrap(),
                subnet6: None,
                number: 0,
                node_addresses: BTreeMap::new(),
                created_at: Timestamp::default(),
                spec: NetworkSpec::default(),
            };
            world.put(keys::network(&network.id), &network);
        }
        world
    }

    fn on(target: &str) -> ServiceSpec {
        let mut spec = service("s1", 1).spec;
        spec.task_template.extra.insert("Networks".into(), json!([{"Target": target, "Aliases": ["a"]}]));
        spec
    }

    #[test]
    fn a_name_becomes_an_id_and_the_network_is_written_anew() {
        let world = world();
        let (mut spec, mut transaction) = (on("net"), Transaction::default());
        resolve(&world.snapshot, None, &mut spec, &mut transaction).unwrap();
        assert_eq!(named_by(&spec), ["n1"]);
        assert_eq!((transaction.compares.len(), transaction.ops.len()), (1, 1), "{transaction:?}");
        let mut unchanged = Transaction::default();
        resolve(&world.snapshot, Some(&on("n1")), &mut spec, &mut unchanged).unwrap();
        assert_eq!(unchanged, Transaction::default(), "it named the network before");
    }

    #[test]
    fn a_network_that_is_not_there_or_not_for_services_is_refused() {
        let world = world();
        for (target, expected) in [
            ("nosuch", "network nosuch not found"),
            ("ingress", "Service cannot be explicitly attached to the ingress network \"ingress\""),
        ] {
            let resolved = resolve(&world.snapshot, None, &mut on(target), &mut Transaction::default());
            assert_eq!(resolved.unwrap_err().to_string(), expected);
        }
    }
}
