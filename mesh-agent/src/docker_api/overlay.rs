//! What clients see of the cluster's networks on this node: one network, though the engine has a
//! bridge of its own for it. Pure.
//!
//! Invariant: where the cluster's network is known, its bridge is not shown beside it.

use std::collections::BTreeMap;

use mesh_state::ids::NetworkId;
use serde_json::{Value, json};

use crate::task::bridge::NETWORK_NAME;
use crate::task::networks::NETWORK_LABEL;
use crate::view::NetworkView;

/// The scope of the cluster's networks.
pub(super) const CLUSTER_SCOPE: &str = "swarm";

/// The id of the cluster's network whose bridge a network of the engine's is.
pub(super) fn cluster_id(network: &Value) -> Option<&str> {
    network["Labels"][NETWORK_LABEL].as_str().filter(|id| !id.is_empty())
}

/// Both lists. Without the cluster's, the engine's bridges stand for the networks that this node
/// knows of.
pub(super) fn joined_networks(
    local: Value,
    cluster: Option<Value>,
    known: &BTreeMap<NetworkId, NetworkView>,
) -> Value {
    let Value::Array(local) = local else { return local };
    let Some(Value::Array(cluster)) = cluster else {
        return local.into_iter().map(|network| seen_here(network, known)).collect();
    };
    let mut networks: Vec<Value> =
        local.into_iter().filter(|network| cluster_id(network).is_none()).collect();
    for network in cluster {
        if !networks.iter().any(|known| known.get("Id") == network.get("Id")) {
            networks.push(network);
        }
    }
    Value::Array(networks)
}

/// The networks that both have pruned, the cluster's first, without those of the engine's that the
/// agent makes again.
pub(super) fn joined_pruned(cluster: &Value, local: &Value, made_again: &[Value]) -> Value {
    let names = |answer: &Value| answer["NetworksDeleted"].as_array().cloned().unwrap_or_default();
    let mut local = names(local);
    local.retain(|name| name != NETWORK_NAME && !made_again.contains(name));
    let all = [names(cluster), local].concat();
    json!({ "NetworksDeleted": if all.is_empty() { Value::Null } else { all.into() } })
}

/// The cluster's network with the containers as the engine knows them on its bridge: their
/// endpoints' ids and MAC addresses too.
pub(super) fn with_endpoints(mut network: Value, bridge: &Value) -> Value {
    let Some(endpoints) = bridge["Containers"].as_object().filter(|endpoints| !endpoints.is_empty()) else {
        return network;
    };
    let fields = network
        .as_object_mut()
        .filter(|fields| fields.get("Id").and_then(Value::as_str) == cluster_id(bridge));
    if let Some(fields) = fields {
        let mut containers = fields.get("Containers").and_then(Value::as_object).cloned().unwrap_or_default();
        containers.extend(endpoints.clone());
        fields.insert("Containers".to_owned(), containers.into());
    }
    network
}

/// A bridge as the cluster's network that it belongs to, as far as this node knows that; another
/// network of the engine's as it is.
pub(super) fn seen_here(mut network: Value, known: &BTreeMap<NetworkId, NetworkView>) -> Value {
    let Some(id) = cluster_id(&network).map(str::to_owned) else { return network };
    let view = known.get(&NetworkId::from(id.as_str()));
    let shown = [
        ("Id", json!(id)),
        ("Driver", json!("overlay")),
        ("Scope", json!(CLUSTER_SCOPE)),
        ("Internal", json!(view.is_some_and(|view| view.internal))),
        ("Attachable", json!(view.is_some_and(|view| view.attachable))),
        ("Options", Value::Null),
    ];
    if let Some(fields) = network.as_object_mut() {
        fields.extend(shown.map(|(name, value)| (name.to_owned(), value)));
        if let Some(labels) = fields.get_mut("Labels").and_then(Value::as_object_mut) {
            drop(labels.remove(NETWORK_LABEL));
        }
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> Value {
        json!({"Id": "b1", "Name": "app", "Driver": "bridge", "Scope": "local", "Internal": true,
               "Labels": {"mesh.network": "n1"},
               "Containers": {"c1": {"Name": "web.1.t", "EndpointID": "e1", "MacAddress": "02:42:0a:00:00:0a"}}})
    }

    #[test]
    fn networks_are_joined_by_id() {
        let known = BTreeMap::new();
        let local = json!([{"Id": "a", "Name": "mesh"}]);
        let cluster = json!([{"Id": "a", "Name": "x"}, {"Id": "b", "Name": "ingress"}]);
        let joined = joined_networks(local.clone(), Some(cluster), &known);
        assert_eq!(joined, json!([{"Id": "a", "Name": "mesh"}, {"Id": "b", "Name": "ingress"}]));
        assert_eq!(joined_networks(local.clone(), None, &known), local);
    }

    #[test]
    fn a_bridge_is_not_shown_beside_its_network() {
        let local = json!([{"Id": "a", "Name": "mesh", "Labels": {"mesh.network": ""}}, bridge()]);
        let overlay = json!({"Id": "n1", "Name": "app", "Driver": "overlay"});
        let joined = joined_networks(local.clone(), Some(json!([overlay])), &BTreeMap::new());
        assert_eq!(joined, json!([local[0], overlay]));
        let removed = joined_networks(local.clone(), Some(json!([])), &BTreeMap::new());
        assert_eq!(removed, json!([local[0]]), "the agent is about to remove the bridge");
    }

    #[test]
    fn without_a_manager_a_bridge_stands_for_its_network() {
        let view = NetworkView {
            id: "n1".into(),
            name: "app".to_owned(),
            number: 1,
            subnet: "10.0.1.0/24".parse().unwrap(),
            subnet6: None,
            node_address: None,
            internal: false,
            attachable: true,
        };
        let known = BTreeMap::from([(view.id.clone(), view)]);
        let shown = joined_networks(json!([bridge()]), None, &known);
        let fields =
            ["Id", "Driver", "Scope", "Internal", "Attachable", "Labels"].map(|name| shown[0][name].clone());
        let expected = [json!("n1"), json!("overlay"), json!("swarm"), json!(false), json!(true), json!({})];
        assert_eq!(fields, expected);
    }

    #[test]
    fn endpoints_are_the_engines() {
        let node_end = json!({"Name": "app-endpoint", "EndpointID": ""});
        let network = json!({"Id": "n1", "Containers": {"c1": {"Name": "web.1.t", "EndpointID": ""}, "lb-app": node_end}});
        let shown = with_endpoints(network.clone(), &bridge());
        assert_eq!(shown["Containers"], json!({"c1": bridge()["Containers"]["c1"], "lb-app": node_end}));
        let mut others = bridge();
        others["Labels"]["mesh.network"] = json!("n2");
        assert_eq!(with_endpoints(network.clone(), &others), network, "a bridge of another network");
    }

    #[test]
    fn what_was_pruned_is_told_together() {
        let pruned = |names: Value| json!({ "NetworksDeleted": names });
        let joined = joined_pruned(&pruned(json!(["over"])), &pruned(json!(["mesh", "local"])), &[]);
        assert_eq!(joined, pruned(json!(["over", "local"])));
        assert_eq!(joined_pruned(&Value::Null, &pruned(Value::Null), &[]), pruned(Value::Null));
    }

    #[test]
    fn a_bridge_that_the_engine_pruned_is_no_network_of_its_own() {
        let pruned = |names: Value| json!({ "NetworksDeleted": names });
        let (cluster, local) = (pruned(json!(["unused"])), pruned(json!(["used", "unused", "local"])));
        let bridges = ["used", "unused"].map(Value::from);
        assert_eq!(joined_pruned(&cluster, &local, &bridges), pruned(json!(["unused", "local"])));
    }
}
