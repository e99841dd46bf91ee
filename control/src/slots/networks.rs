//! The networks on which a service's spec puts its tasks. Pure.
//!
//! Invariants: each network is listed once, in the order of the spec; a spec that the API stored
//! names networks by their ids.
//!
//! Left to others: turning names into ids (the API), and addresses ([`super::addresses`]).

use mesh_state::ids::NetworkId;
use mesh_state::spec::ServiceSpec;
use serde_json::Value;

/// The value of `EndpointSpec.Mode` that gives a service no virtual IPs.
const DNSRR: &str = "dnsrr";

/// A network in a service's spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedNetwork {
    /// The id of the network that the spec names.
    pub id: NetworkId,
    /// The service's aliases on the network.
    pub aliases: Vec<String>,
}

/// The entries of a spec's networks, with the id of the network that each names. More than one may
/// name a network.
fn entries(spec: &ServiceSpec) -> impl Iterator<Item = (&str, &Value)> {
    // Older clients name a service's networks beside the template.
    let lists = [spec.task_template.extra.get("Networks"), spec.extra.get("Networks")];
    let all = lists.into_iter().flatten().filter_map(Value::as_array).flatten();
    all.filter_map(|one| Some((one.get("Target")?.as_str()?, one)))
}

/// The ids of a service's networks in the order of its spec, some perhaps more than once.
pub fn ids_named_by(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    entries(spec).map(|(id, _)| id)
}

/// The networks of a service, each listed once.
pub fn named_by(spec: &ServiceSpec) -> Vec<NamedNetwork> {
    let mut named: Vec<NamedNetwork> = Vec::new();
    for (target, one) in entries(spec) {
        let id = NetworkId::from(target);
        if named.iter().all(|known| known.id != id) {
            let aliases = one.get("Aliases").and_then(Value::as_array).into_iter().flatten();
            let aliases = aliases.filter_map(Value::as_str).map(str::to_owned).collect();
            named.push(NamedNetwork { id, aliases });
        }
    }
    named
}

/// Whether the service has a virtual IP on each of its networks.
pub fn has_virtual_ips(spec: &ServiceSpec) -> bool {
    spec.endpoint_spec.as_ref().is_none_or(|endpoint| !endpoint.mode.eq_ignore_ascii_case(DNSRR))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_network_is_named_once_with_its_aliases_and_in_the_specs_order() {
        let mut spec = ServiceSpec::default();
        let within = json!([{"Target": "b", "Aliases": ["db", "sql"]}, {"Target": "a", "Aliases": null}, {"Target": "b"}]);
        spec.task_template.extra.insert("Networks".to_owned(), within);
        spec.extra.insert("Networks".to_owned(), json!([{"Target": "a"}, {"Target": "c"}]));
        let named: Vec<_> =
            named_by(&spec).into_iter().map(|one| (one.id.to_string(), one.aliases.join(","))).collect();
        let expected = [("b", "db,sql"), ("a", ""), ("c", "")];
        assert_eq!(named, expected.map(|(id, aliases)| (id.to_owned(), aliases.to_owned())));
        assert_eq!(named_by(&ServiceSpec::default()), []);
    }

    #[test]
    fn only_dnsrr_has_no_virtual_ips() {
        let mut spec = ServiceSpec::default();
        assert!(has_virtual_ips(&spec), "no endpoint spec");
        for (mode, expected) in [("", true), ("vip", true), ("dnsrr", false)] {
            mode.clone_into(&mut spec.endpoint_spec.get_or_insert_default().mode);
            assert_eq!(has_virtual_ips(&spec), expected, "mode {mode:?}");
        }
    }
}
