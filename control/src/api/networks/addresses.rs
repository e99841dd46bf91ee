//! Parses and checks the subnet that a request for a network names (`--subnet`, `--gateway`,
//! `--ip-range`). Pure.
//!
//! Invariant: an accepted request has one IPv4 subnet that contains its range and its gateway, and
//! it is stored as it was sent.
//!
//! Left to others: whether the subnet is in use already ([`crate::slots::network_space`]).

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use mesh_state::network::{IpamConfig, NetworkSpec};
use serde_json::Value;

use super::options::not_served;
use crate::api::error::ApiError;

/// The longest prefix of a subnet: besides the gateway there is room for a node, a service and a
/// task.
const PREFIX_MAX: u8 = 29;

/// The subnet that a user requests; `None` if the cluster is to choose one.
///
/// # Errors
/// What is wrong with the request: in the engine's words if it is no address, in those of Swarm's
/// manager if its parts don't fit each other.
pub(super) fn subnet(spec: &NetworkSpec) -> Result<Option<Ipv4Net>, ApiError> {
    let given = spec.ipam.iter().flat_map(|ipam| ipam.config.iter().flatten());
    let given: Vec<&IpamConfig> = given.filter(|config| !is_empty(config)).collect();
    for config in &given {
        texts(config)?;
    }
    if given.iter().any(|config| config.extra.values().any(|value| !is_nothing(value))) {
        return Err(not_served(
            "--aux-address",
            "mesh gives out addresses by itself. Use --ip-range to keep it from the others",
        ));
    }
    match given.as_slice() {
        [] => Ok(None),
        [config] => one(config).map(Some),
        [first, second, ..] => {
            if let (Ok(first), Ok(second)) = (first.subnet.parse::<IpNet>(), second.subnet.parse::<IpNet>())
                && (first.contains(&second) || second.contains(&first))
            {
                let message = "multiple overlapping subnet configuration is not supported";
                return Err(ApiError::BadRequest(message.to_owned()));
            }
            Err(not_served("--subnet given twice", "a network has one subnet. Create two networks"))
        }
    }
}

fn one(config: &IpamConfig) -> Result<Ipv4Net, ApiError> {
    let subnet = match config.subnet.parse::<IpNet>() {
        Ok(IpNet::V4(subnet)) => subnet,
        Ok(IpNet::V6(subnet)) => {
            let reason = "a task's address on the cluster's networks is IPv4. Give an IPv4 subnet";
            return Err(not_served(&format!("--subnet {subnet}"), reason));
        }
        Err(_) => {
            return Err(ApiError::Invalid(format!("ipam configuration: invalid subnet {}", config.subnet)));
        }
    };
    usable(subnet)?;
    let lacks = |what: &str, text: &str| {
        let message = format!("ipam configuration: subnet {} does not contain {what} {text}", config.subnet);
        Err(ApiError::Invalid(message))
    };
    if !config.ip_range.is_empty() {
        match config.ip_range.parse::<IpNet>() {
            Ok(IpNet::V4(range)) if subnet.contains(&range) => {}
            _ => return lacks("range", &config.ip_range),
        }
    }
    if !config.gateway.is_empty() {
        match config.gateway.parse::<Ipv4Addr>() {
            Ok(gateway) if subnet.contains(&gateway) => is_hosts(subnet, gateway)?,
            _ => return lacks("gateway", &config.gateway),
        }
    }
    Ok(subnet)
}

/// Whether tasks can have addresses of the subnet.
fn usable(subnet: Ipv4Net) -> Result<(), ApiError> {
    let refuse = |message: String| Err(ApiError::BadRequest(message));
    if subnet != subnet.trunc() {
        return refuse(format!(
            "invalid network config:\ninvalid subnet {subnet}: it should be {}",
            subnet.trunc()
        ));
    }
    let first = subnet.network();
    let special = first.is_loopback() || first.is_link_local() || first.is_multicast();
    if special || first.octets()[0] == 0 || first.octets()[0] >= 240 {
        return refuse(format!(
            "invalid subnet {subnet}: tasks can't have loopback, link-local, multicast or reserved addresses"
        ));
    }
    if subnet.prefix_len() > PREFIX_MAX {
        return refuse(format!(
            "invalid subnet {subnet}: it has no room for a gateway, a node, a service and a task: give a /{PREFIX_MAX} or larger"
        ));
    }
    Ok(())
}

/// Checks that a gateway is a host address of the subnet: neither its first nor its last address.
fn is_hosts(subnet: Ipv4Net, gateway: Ipv4Addr) -> Result<(), ApiError> {
    if gateway == subnet.network() || gateway == subnet.broadcast() {
        let message =
            format!("invalid gateway {gateway}: the first and the last address of {subnet} are no host's");
        return Err(ApiError::BadRequest(message));
    }
    Ok(())
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty) || value == &Value::from("")
}

fn is_empty(config: &IpamConfig) -> bool {
    config.subnet.is_empty()
        && config.ip_range.is_empty()
        && config.gateway.is_empty()
        && config.extra.values().all(is_nothing)
}

/// Checks that the texts of a subnet are addresses.
fn texts(config: &IpamConfig) -> Result<(), ApiError> {
    let bad = |what: &str, text: &str| {
        ApiError::BadRequest(format!("Invalid {what} {text} : invalid CIDR address: {text}"))
    };
    if !config.subnet.is_empty() && config.subnet.parse::<IpNet>().is_err() {
        return Err(bad("subnet", &config.subnet));
    }
    if !config.ip_range.is_empty() && config.ip_range.parse::<IpNet>().is_err() {
        return Err(bad("range", &config.ip_range));
    }
    if !config.gateway.is_empty() && config.gateway.parse::<IpAddr>().is_err() {
        return Err(ApiError::BadRequest(format!("Invalid gateway {}", config.gateway)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(configs: &Value) -> Result<Option<String>, (u16, String)> {
        let spec: NetworkSpec =
            serde_json::from_value(json!({"IPAM": {"Driver": "default", "Config": configs}})).unwrap();
        let subnet = subnet(&spec).map(|subnet| subnet.map(|subnet| subnet.to_string()));
        subnet.map_err(|error| (error.status().as_u16(), error.message()))
    }

    #[test]
    fn one_subnet_is_taken_with_its_range_and_its_gateway() {
        for (configs, expected) in [
            (json!([]), None),
            (json!([{"AuxiliaryAddresses": null}, {"Subnet": ""}]), None),
            (json!([{"Subnet": "10.55.0.0/24"}]), Some("10.55.0.0/24")),
            (
                json!([{"Subnet": "10.55.0.0/24", "IPRange": "10.55.0.128/25", "Gateway": "10.55.0.254",
                        "AuxiliaryAddresses": {}}]),
                Some("10.55.0.0/24"),
            ),
            (json!([{"Subnet": "192.168.9.8/29"}]), Some("192.168.9.8/29")),
        ] {
            assert_eq!(asked(&configs), Ok(expected.map(str::to_owned)), "for {configs}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_in_dockers_words() {
        let swarms = |message: &str| format!("rpc error: code = InvalidArgument desc = {message}");
        let subnet = "10.55.0.0/24";
        for (config, status, expected) in [
            (json!({"Gateway": "10.55.0.1"}), 400, swarms("ipam configuration: invalid subnet ")),
            (
                json!({"Subnet": subnet, "IPRange": "10.56.0.0/25"}),
                400,
                swarms("ipam configuration: subnet 10.55.0.0/24 does not contain range 10.56.0.0/25"),
            ),
            (
                json!({"Subnet": subnet, "Gateway": "10.56.0.1"}),
                400,
                swarms("ipam configuration: subnet 10.55.0.0/24 does not contain gateway 10.56.0.1"),
            ),
            (json!({"Subnet": "x"}), 400, "Invalid subnet x : invalid CIDR address: x".to_owned()),
            (
                json!({"Subnet": "10.55.0.7/24"}),
                400,
                "invalid network config:\ninvalid subnet 10.55.0.7/24: it should be 10.55.0.0/24".to_owned(),
            ),
        ] {
            assert_eq!(asked(&json!([config])), Err((status, expected)), "for {config}");
        }
        let overlapping = json!([{"Subnet": subnet}, {"Subnet": "10.55.0.0/16"}]);
        let message = "multiple overlapping subnet configuration is not supported".to_owned();
        assert_eq!(asked(&overlapping), Err((400, message)));
    }

    #[test]
    fn what_is_not_served_or_of_no_use_is_named() {
        let subnet = "10.55.0.0/24";
        for (configs, status, named) in [
            (json!([{"Subnet": subnet, "AuxiliaryAddresses": {"a": "10.55.0.9"}}]), 501, "--aux-address"),
            (json!([{"Subnet": subnet}, {"Subnet": "10.56.0.0/24"}]), 501, "--subnet given twice"),
            (json!([{"Subnet": "fd00:55::/64"}]), 501, "--subnet fd00:55::/64"),
            (json!([{"Subnet": "10.55.0.0/30"}]), 400, "/29 or larger"),
            (json!([{"Subnet": "127.0.0.0/24"}]), 400, "loopback"),
            (json!([{"Subnet": "0.0.0.0/0"}]), 400, "reserved"),
            (json!([{"Subnet": "240.0.0.0/24"}]), 400, "reserved"),
            (json!([{"Subnet": subnet, "Gateway": "10.55.0.255"}]), 400, "invalid gateway"),
        ] {
            let (seen, message) = asked(&configs).expect_err("accepted");
            assert!(seen == status && message.contains(named), "for {configs}: {seen} {message}");
        }
    }
}
