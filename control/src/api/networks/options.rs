//! Checks a request for a network, except for its addresses. Pure.
//!
//! Invariant: what mesh can't do is refused by the option's name. No option is accepted and then
//! ignored.

use std::ops::RangeInclusive;

use mesh_state::network::{ENCRYPTED_OPTION, MTU_OPTION, NetworkSpec};
use mesh_state::node::NodeState;
use serde_json::Value;

use crate::api::error::ApiError;
use crate::feed::snapshot::ClusterSnapshot;

/// The smallest and the largest MTU in bytes of an IPv4 link.
const MTU: RangeInclusive<u32> = 68..=65_535;
/// The same of an IPv6 link (RFC 8200, section 5).
const MTU6: RangeInclusive<u32> = 1280..=65_535;

/// Checks a request to create a network.
///
/// # Errors
/// The first error in the request, or the first option that mesh doesn't serve.
pub(super) fn check(snapshot: &ClusterSnapshot, spec: &NetworkSpec) -> Result<(), ApiError> {
    kind(snapshot, spec)?;
    if let Some((option, reason)) = unserved(spec) {
        return Err(not_served(&option, reason));
    }
    encryption(snapshot, spec)?;
    let mtu = spec.options.as_ref().and_then(|options| options.get(MTU_OPTION));
    let range = if spec.enable_ipv6 == Some(true) { MTU6 } else { MTU };
    // 0 asks for the default, as with Docker's driver.
    match mtu.map(|mtu| (mtu, mtu.parse())) {
        None | Some((_, Ok(0))) => Ok(()),
        Some((_, Ok(mtu))) if range.contains(&mtu) => Ok(()),
        Some((mtu, _)) => Err(ApiError::BadRequest(format!(
            "invalid MTU value: {mtu}: give --opt {MTU_OPTION} {} to {} bytes",
            range.start(),
            range.end()
        ))),
    }
}

/// Refuses encryption as long as an agent doesn't know it: such an agent could not take part in the
/// network, and under a manager of its own version it would get no table any more.
fn encryption(snapshot: &ClusterSnapshot, spec: &NetworkSpec) -> Result<(), ApiError> {
    if !spec.asks_for_encryption() {
        return Ok(());
    }
    let mut heard = snapshot.nodes.values().filter(|node| snapshot.node_state(&node.id) != NodeState::Down);
    match heard.find(|node| !node.description.knows_encryption) {
        Some(node) => Err(not_served(
            "--opt encrypted",
            &format!(
                "the agent of node {} doesn't know it: upgrade all agents first",
                node.description.hostname
            ),
        )),
        None => Ok(()),
    }
}

/// The refusal of an option.
pub(super) fn not_served(option: &str, reason: &str) -> ApiError {
    ApiError::NotImplemented(format!("a network's option {option} is not served by mesh yet: {reason}"))
}

/// Checks that it is a network that the cluster can have at all.
fn kind(snapshot: &ClusterSnapshot, spec: &NetworkSpec) -> Result<(), ApiError> {
    if !matches!(spec.driver.as_str(), "" | "overlay") {
        return Err(ApiError::NotImplemented(format!(
            "networks with the driver {} and the scope swarm are not served by mesh: create one with --driver overlay, \
             or leave out --scope swarm to create a network of this node",
            spec.driver
        )));
    }
    if spec.config_only {
        let message = "configuration network is not supported for swarm scoped networks";
        return Err(ApiError::BadRequest(message.to_owned()));
    }
    if !matches!(text(spec, "Scope"), "" | "swarm") {
        return Err(ApiError::Forbidden("cannot downgrade network scope for overlay networks".to_owned()));
    }
    if spec.ingress {
        let present = snapshot.networks.values().find(|network| network.ingress);
        let id = present.map_or("none", |network| network.id.as_str());
        return Err(ApiError::AlreadyExists(format!("ingress network ({id}) is already present")));
    }
    Ok(())
}

/// The first option that would have no effect, by its flag, with what to do instead.
fn unserved(spec: &NetworkSpec) -> Option<(String, &'static str)> {
    let ipam = spec.ipam.clone().unwrap_or_default();
    let options = spec
        .options
        .iter()
        .flatten()
        .filter(|(name, _)| ![MTU_OPTION, ENCRYPTED_OPTION].contains(&name.as_str()));
    let options = options
        .map(|(name, _)| (format!("--opt {name}"), "it would change nothing. Create the network without it"));
    let ipam_options = ipam.options.iter().flatten().map(|(name, _)| {
        (format!("--ipam-opt {name}"), "mesh gives out addresses by itself. Create the network without it")
    });
    let flags = [
        (
            spec.extra.get("EnableIPv4") == Some(&Value::Bool(false)),
            "--ipv4=false",
            "each member of a network has an IPv4 address. Create the network without it",
        ),
        (
            !matches!(ipam.driver.as_str(), "" | "default"),
            "--ipam-driver",
            "mesh gives out addresses by itself. Create the network without it",
        ),
        (config_from(spec), "--config-from", "give the network its settings directly"),
    ];
    let flags = flags.into_iter().filter(|(asked, ..)| *asked);
    flags.map(|(_, flag, reason)| (flag.to_owned(), reason)).chain(options).chain(ipam_options).next()
}

fn text<'a>(spec: &'a NetworkSpec, field: &str) -> &'a str {
    spec.extra.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn config_from(spec: &NetworkSpec) -> bool {
    let name = spec.extra.get("ConfigFrom").and_then(|from| from.get("Network")).and_then(Value::as_str);
    name.is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::World;

    fn said(mut body: Value) -> Option<(u16, String)> {
        body["Name"] = json!("net");
        let spec: NetworkSpec = serde_json::from_value(body).unwrap();
        let checked = check(&World::new().snapshot, &spec);
        checked.err().map(|error| (error.status().as_u16(), error.to_string()))
    }

    #[test]
    fn every_option_that_would_change_nothing_is_refused_by_name() {
        for (body, named) in [
            (json!({"Options": {"dsr": ""}}), "--opt dsr"),
            (json!({"EnableIPv4": false}), "--ipv4=false"),
            (json!({"ConfigFrom": {"Network": "other"}}), "--config-from"),
            (json!({"IPAM": {"Driver": "dhcp"}}), "--ipam-driver"),
            (json!({"IPAM": {"Options": {"a": "b"}}}), "--ipam-opt a"),
            (json!({"Driver": "bridge", "Scope": "swarm"}), "driver bridge and the scope swarm"),
        ] {
            let (status, message) = said(body.clone()).unwrap_or_else(|| panic!("{body} was accepted"));
            assert!(status == 501 && message.contains(named), "for {body}: {status} {message}");
        }
    }

    #[test]
    fn encryption_waits_for_the_last_agent_that_doesnt_know_it() {
        let spec: NetworkSpec =
            serde_json::from_value(json!({"Name": "net", "Options": {"encrypted": ""}})).unwrap();
        let mut world = World::with_nodes(["a", "b"]);
        world.update_node("a", |node| node.description.knows_encryption = true);
        let refused = check(&world.snapshot, &spec).unwrap_err();
        let message = refused.to_string();
        assert_eq!(refused.status().as_u16(), 501);
        assert!(message.contains("--opt encrypted") && message.contains("host-b"), "{message}");
        world.update_node("b", |node| node.description.knows_encryption = true);
        assert!(check(&world.snapshot, &spec).is_ok());
    }

    #[test]
    fn what_is_served_passes_and_so_does_what_clients_send_without_being_asked() {
        for body in [
            json!({}),
            json!({"Attachable": true, "Internal": true, "Options": {MTU_OPTION: "1400"}}),
            json!({"Options": {MTU_OPTION: "0"}}),
            json!({"Options": {ENCRYPTED_OPTION: ""}}),
            json!({"Options": {ENCRYPTED_OPTION: "true", MTU_OPTION: "1300"}}),
            json!({"CheckDuplicate": true, "Driver": "overlay", "Scope": "", "EnableIPv6": false, "EnableIPv4": true,
                   "IPAM": {"Driver": "default", "Options": {}, "Config": []}, "Internal": false, "Attachable": false,
                   "Ingress": false, "ConfigOnly": false, "ConfigFrom": {"Network": ""}, "Options": {}, "Labels": {"a": "b"}}),
            json!({"Scope": "swarm", "ConfigFrom": null}),
            json!({"EnableIPv6": true}),
        ] {
            assert_eq!(said(body.clone()), None, "for {body}");
        }
    }

    #[test]
    fn an_mtu_is_a_packets_size() {
        let with_ipv6 = |mtu: &str| said(json!({"EnableIPv6": true, "Options": {MTU_OPTION: mtu}}));
        assert_eq!(with_ipv6("1280"), None);
        let (status, message) = with_ipv6("1279").unwrap();
        assert!(status == 400 && message.contains("1280 to 65535 bytes"), "{message}");
        for mtu in ["", "x", "67", "65536", "-1"] {
            let (status, message) = said(json!({"Options": {MTU_OPTION: mtu}})).unwrap();
            assert!(status == 400 && message.starts_with("invalid MTU value"), "for {mtu:?}: {message}");
        }
    }

    #[test]
    fn a_scope_that_no_overlay_has_is_refused_as_by_swarm() {
        for scope in ["local", "global"] {
            let message = "cannot downgrade network scope for overlay networks".to_owned();
            assert_eq!(said(json!({"Driver": "overlay", "Scope": scope})), Some((403, message)));
        }
    }
}
