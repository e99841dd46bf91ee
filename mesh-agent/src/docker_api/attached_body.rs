//! What a client asks of networks for a container, and the same request with the places that the
//! cluster gave. Pure.
//!
//! Invariant: field names match in any case, as in Go, and a field that comes twice is refused, as
//! the engine would read it in another way; whatever isn't about the cluster's networks stays as it
//! came.

use mesh_state::go_json::{self, is_field};
use mesh_state::network::AssignedNetwork;
use serde_json::{Value, json};

/// Modes of a container's network that name no network of a user's.
const BUILT_IN: [&str; 5] = ["", "default", "bridge", "host", "none"];

/// A network as a client named it, and the container's place on it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The name or id that the client used.
    pub(super) named: String,
    /// The network, with the container's address.
    pub(super) network: AssignedNetwork,
}

/// What a client asks of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Endpoint {
    /// Names of `--network-alias`.
    pub(super) aliases: Vec<String>,
    /// The IPv4 address that `--ip` asks for.
    pub(super) address: Option<String>,
    /// The IPv6 address that `--ip6` asks for.
    pub(super) address6: Option<String>,
}

impl Endpoint {
    /// Reads the settings of an endpoint.
    pub(super) fn of(settings: Option<&Value>) -> Self {
        let aliases = settings.and_then(|settings| field(settings, "Aliases"));
        let aliases = aliases.and_then(Value::as_array).into_iter().flatten();
        let ipam = settings.and_then(|settings| field(settings, "IPAMConfig"));
        let address = |name: &str| ipam.and_then(|ipam| text(ipam, name)).filter(|text| !text.is_empty());
        Self {
            aliases: aliases.filter_map(Value::as_str).map(str::to_owned).collect(),
            address: address("IPv4Address").map(str::to_owned),
            address6: address("IPv6Address").map(str::to_owned),
        }
    }
}

/// Reads the body of a request about a container's networks.
///
/// # Errors
/// It isn't JSON, or a field that is read here comes twice; the text says which.
pub(super) fn read(bytes: &[u8]) -> Result<Value, String> {
    let body = go_json::parse(bytes).map_err(|error| format!("invalid JSON: {error}"))?;
    match objects_of(&body).into_iter().filter_map(Value::as_object).find_map(go_json::repeated) {
        Some(name) => Err(format!("invalid JSON: the field {name} comes twice, in different spellings")),
        None => Ok(body),
    }
}

/// The objects of a body whose fields are read here. Each is the only one of its name if the ones
/// before it have no field twice.
fn objects_of(body: &Value) -> Vec<&Value> {
    let endpoints = endpoints_of(body).and_then(Value::as_object).into_iter().flatten();
    let endpoints = endpoints.map(|(_, settings)| settings).chain(field(body, "EndpointConfig"));
    let endpoints: Vec<&Value> = endpoints.collect();
    let outer = ["HostConfig", "NetworkingConfig"].into_iter().filter_map(|name| field(body, name));
    let ipam = endpoints.iter().filter_map(|settings| field(settings, "IPAMConfig"));
    std::iter::once(body).chain(outer).chain(endpoints.iter().copied()).chain(ipam).collect()
}

/// The users' networks that a container to create is to be on.
pub(super) fn networks_of(container: &Value) -> Vec<String> {
    let endpoints = endpoints_of(container).and_then(Value::as_object).into_iter().flatten();
    let mut names: Vec<String> = endpoints.map(|(name, _)| name.clone()).collect();
    names.push(mode_of(container).to_owned());
    names.retain(|name| !BUILT_IN.contains(&name.as_str()) && !name.starts_with("container:"));
    names.sort_unstable();
    names.dedup();
    names
}

/// What is asked of the network `named` for a container to create.
pub(super) fn endpoint_of(container: &Value, named: &str) -> Endpoint {
    Endpoint::of(endpoints_of(container).and_then(|endpoints| endpoints.get(named)))
}

/// Whether a container that is on `places` alone reaches nothing outside, though one of its
/// networks is not internal.
pub(super) fn lacks_way_out(container: &Value, places: &[Place]) -> bool {
    let is_elsewhere = |name: &String| !places.iter().any(|place| place.named == *name);
    !BUILT_IN.contains(&mode_of(container))
        && !networks_of(container).iter().any(is_elsewhere)
        && places.iter().any(|place| !place.network.internal)
}

/// Puts a container to create on its places: under the names of the Docker networks, at the
/// addresses that the cluster gave, and with this node's name server on them as its first ones.
pub(super) fn put_on(container: &mut Value, places: &[Place]) {
    let mode = mode_of(container).to_owned();
    for Place { named, network } in places {
        let endpoints = field_mut(field_mut(container, "NetworkingConfig"), "EndpointsConfig");
        let asked = endpoints.as_object_mut().and_then(|endpoints| endpoints.remove(named));
        let settings = field_mut(endpoints, &network.name);
        *settings = asked.unwrap_or_default();
        set_address(settings, network);
        if mode == *named {
            *field_mut(field_mut(container, "HostConfig"), "NetworkMode") = json!(network.name);
        }
    }
    let servers = field_mut(field_mut(container, "HostConfig"), "Dns");
    let own = places.iter().map(|place| json!(place.network.node_address));
    let given = servers.as_array().cloned().unwrap_or_default();
    *servers = own.chain(given).collect();
}

/// The settings of an endpoint at the addresses that the cluster gave.
pub(super) fn set_address(settings: &mut Value, network: &AssignedNetwork) {
    let ipam = field_mut(settings, "IPAMConfig");
    *field_mut(ipam, "IPv4Address") = json!(network.address);
    if let Some(address) = network.address6() {
        *field_mut(ipam, "IPv6Address") = json!(address);
    }
}

/// A field by its name in any case.
pub(super) fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let mut fields = object.as_object().into_iter().flatten();
    fields.find(|(key, _)| is_field(key, name)).map(|(_, value)| value)
}

/// A text field by its name in any case.
pub(super) fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    field(object, name).and_then(Value::as_str)
}

/// A field by its name in any case, which is made if it isn't there.
pub(super) fn field_mut<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    if !object.is_object() {
        *object = json!({});
    }
    let mut keys = object.as_object().into_iter().flatten().map(|(key, _)| key);
    let key = keys.find(|key| is_field(key, name)).cloned();
    &mut object[key.unwrap_or_else(|| name.to_owned())]
}

fn mode_of(container: &Value) -> &str {
    field(container, "HostConfig").and_then(|host| text(host, "NetworkMode")).unwrap_or_default()
}

fn endpoints_of(container: &Value) -> Option<&Value> {
    field(container, "NetworkingConfig").and_then(|config| field(config, "EndpointsConfig"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(named: &str, name: &str, internal: bool) -> Place {
        let network = AssignedNetwork {
            id: "n5".into(),
            name: name.to_owned(),
            number: 5,
            subnet: "10.0.5.0/24".parse().unwrap(),
            subnet6: None,
            node_address: [10, 0, 5, 2].into(),
            internal,
            mtu: None,
            address: [10, 0, 5, 7].into(),
            aliases: Vec::new(),
        };
        Place { named: named.to_owned(), network }
    }

    #[test]
    fn every_way_of_naming_a_users_network_is_found() {
        let of = |container: Value| networks_of(&container);
        assert_eq!(of(json!({"HostConfig": {"NetworkMode": "app"}})), ["app"]);
        assert_eq!(of(json!({"hostconfig": {"networkmode": "app"}})), ["app"], "Go reads any case");
        let both = json!({"HostConfig": {"NetworkMode": "app"},
                          "NetworkingConfig": {"EndpointsConfig": {"app": {}, "db": null}}});
        assert_eq!(of(both), ["app", "db"]);
        for built_in in ["", "default", "bridge", "host", "none", "container:x"] {
            let named = of(json!({"HostConfig": {"NetworkMode": built_in}}));
            assert!(named.is_empty(), "{built_in} is no network of a user's: {named:?}");
        }
        assert!(of(json!({"Image": "busybox", "HostConfig": null})).is_empty());
        assert!(of(Value::Null).is_empty());
    }

    #[test]
    fn a_container_gets_the_clusters_address_and_this_nodes_name_server() {
        let mut container = json!({"Image": "busybox", "HostConfig": {"NetworkMode": "app", "Memory": 5}});
        put_on(&mut container, &[place("app", "app", false)]);
        let expected = json!({
            "Image": "busybox",
            "HostConfig": {"NetworkMode": "app", "Memory": 5, "Dns": ["10.0.5.2"]},
            "NetworkingConfig": {"EndpointsConfig": {"app": {"IPAMConfig": {"IPv4Address": "10.0.5.7"}}}},
        });
        assert_eq!(container, expected);
    }

    #[test]
    fn a_network_with_ipv6_gives_an_address_of_each_version() {
        let mut place = place("app", "app", false);
        place.network.subnet6 = "fd00:55::/64".parse().ok();
        let mut settings = json!({"ipamconfig": null});
        set_address(&mut settings, &place.network);
        let expected = json!({"ipamconfig": {"IPv4Address": "10.0.5.7", "IPv6Address": "fd00:55::a00:507"}});
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_the_client_asked_for_stays() {
        let mut container = json!({
            "hostconfig": {"networkmode": "n5", "dns": ["1.1.1.1"]},
            "networkingconfig": {"endpointsconfig": {"n5": {"aliases": ["a"], "ipamconfig": null}, "own": {}}},
        });
        assert_eq!(endpoint_of(&container, "n5").aliases, ["a"]);
        put_on(&mut container, &[place("n5", "app", false)]);
        let expected = json!({
            "hostconfig": {"networkmode": "app", "dns": ["10.0.5.2", "1.1.1.1"]},
            "networkingconfig": {"endpointsconfig": {
                "app": {"aliases": ["a"], "ipamconfig": {"IPv4Address": "10.0.5.7"}}, "own": {},
            }},
        });
        assert_eq!(container, expected);
    }

    #[test]
    fn an_address_of_the_clients_own_choice_is_seen() {
        let asked = |ipam: Value| Endpoint::of(Some(&json!({"IPAMConfig": ipam})));
        assert_eq!(asked(json!({"IPv4Address": "10.0.5.9"})).address.as_deref(), Some("10.0.5.9"));
        assert_eq!(asked(json!({"ipv6address": "fd00::9"})).address6.as_deref(), Some("fd00::9"));
        assert_eq!(asked(json!({"IPv4Address": ""})), Endpoint::default());
        assert_eq!(Endpoint::of(None), Endpoint::default());
    }

    #[test]
    fn a_body_that_the_engine_would_read_otherwise_is_refused() {
        for body in [
            r#"{"HostConfig":{"NetworkMode":"app"},"HostConfig":{"Memory":5}}"#,
            r#"{"HostConfig":{"Memory":5},"hostconfig":{"NetworkMode":"app"}}"#,
            "{\"HostConfig\":{\"NetworkMode\":\"app\",\"networ\u{212a}mode\":\"db\"}}",
            r#"{"NetworkingConfig":{"EndpointsConfig":{"app":{"IPAMConfig":{},"ipamconfig":{"IPv4Address":"10.0.5.9"}}}}}"#,
            r#"{"NetworkingConfig":{"EndpointsConfig":{"app":{"IPAMConfig":{"IPv4Address":"","ipv4address":"10.0.5.9"}}}}}"#,
            r#"{"Container":"x","EndpointConfig":{"Aliases":[],"aliaseſ":["db"]}}"#,
            r#"{"HostConfig":{"NetworkMode":"app"}} trailing"#,
            "{\"HostConfig\":{\"NetworkMode\":\"app\"},\"Image\":\"\\ud800\"}",
        ] {
            assert!(read(body.as_bytes()).is_err(), "accepted {body}");
        }
        let maps =
            r#"{"Labels":{"a":"1","A":"2"},"NetworkingConfig":{"EndpointsConfig":{"app":{},"App":{}}}}"#;
        assert!(read(maps.as_bytes()).is_ok(), "names of networks and labels have a case");
    }

    #[test]
    fn only_who_is_on_the_clusters_networks_alone_lacks_a_way_out() {
        let on = |mode: &str, also: &str| json!({"HostConfig": {"NetworkMode": mode}, "NetworkingConfig": {"EndpointsConfig": {also: {}}}});
        let places = [place("app", "app", false)];
        assert!(lacks_way_out(&on("app", "app"), &places));
        assert!(!lacks_way_out(&on("app", "own"), &places), "another network leads outside");
        assert!(!lacks_way_out(&on("bridge", "app"), &places));
        assert!(!lacks_way_out(&on("app", "app"), &[place("app", "app", true)]), "its user asked for none");
    }
}
