//! Parses and checks the subnet that a request for a network names (`--subnet`, `--gateway`,
//! `--ip-range`). Pure.
//!
//! Invariant: an accepted request has at most one IPv4 subnet, which contains its range and its
//! gateway, and at most one IPv6 subnet, which contains its gateway. It is stored as it was sent.
//!
//! Left to others: whether the subnet is in use already ([`crate::slots::network_space`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_state::network::{IpamConfig, NetworkSpec, PREFIX6_MAX};
use serde_json::Value;

use super::options::not_served;
use crate::api::error::ApiError;
use crate::slots::network_space::Wanted;

/// The longest prefix of a subnet: besides the gateway there is room for a node, a service and a
/// task.
const PREFIX_MAX: u8 = 29;

/// The subnets that a user requests.
///
/// # Errors
/// What is wrong with the request: in the engine's words if it is no address, in those of Swarm's
/// manager if its parts don't fit each other.
pub(super) fn wanted(spec: &NetworkSpec) -> Result<Wanted, ApiError> {
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
    let mut wanted = Wanted { has_ipv6: spec.enable_ipv6 == Some(true), ..Wanted::default() };
    for config in &given {
        let is_second = match config.subnet.parse::<IpNet>() {
            Ok(IpNet::V4(subnet)) => wanted.subnet.replace(one(config, subnet)?).is_some(),
            Ok(IpNet::V6(subnet)) if wanted.has_ipv6 => {
                wanted.subnet6.replace(one6(config, subnet)?).is_some()
            }
            Ok(IpNet::V6(subnet)) => {
                let message = format!("the network has no IPv6 for --subnet {subnet}: give --ipv6 as well");
                return Err(ApiError::BadRequest(message));
            }
            Err(_) => {
                let message = format!("ipam configuration: invalid subnet {}", config.subnet);
                return Err(ApiError::Invalid(message));
            }
        };
        if is_second {
            return Err(second_subnet(&given));
        }
    }
    Ok(wanted)
}

/// The refusal of several subnets of one IP version. Swarm gives addresses of the second once the
/// first is used up.
fn second_subnet(given: &[&IpamConfig]) -> ApiError {
    let subnets: Vec<IpNet> = given.iter().filter_map(|config| config.subnet.parse().ok()).collect();
    let overlaps = |index: usize, subnet: &IpNet| {
        subnets[..index].iter().any(|other| other.contains(subnet) || subnet.contains(other))
    };
    if subnets.iter().enumerate().any(|(index, subnet)| overlaps(index, subnet)) {
        let message = "multiple overlapping subnet configuration is not supported";
        return ApiError::BadRequest(message.to_owned());
    }
    not_served(
        "--subnet given twice",
        "a network has one subnet of each IP version. Give one that is large enough, or create two networks",
    )
}

/// The refusal of a range or a gateway outside of its subnet.
fn lacks(config: &IpamConfig, what: &str, text: &str) -> ApiError {
    let message = format!("ipam configuration: subnet {} does not contain {what} {text}", config.subnet);
    ApiError::Invalid(message)
}

fn one(config: &IpamConfig, subnet: Ipv4Net) -> Result<Ipv4Net, ApiError> {
    usable(subnet)?;
    if !config.ip_range.is_empty() {
        match config.ip_range.parse::<IpNet>() {
            Ok(IpNet::V4(range)) if subnet.contains(&range) => {}
            _ => return Err(lacks(config, "range", &config.ip_range)),
        }
    }
    if !config.gateway.is_empty() {
        match config.gateway.parse::<Ipv4Addr>() {
            Ok(gateway) if subnet.contains(&gateway) => is_hosts(subnet, gateway)?,
            _ => return Err(lacks(config, "gateway", &config.gateway)),
        }
    }
    Ok(subnet)
}

fn one6(config: &IpamConfig, subnet: Ipv6Net) -> Result<Ipv6Net, ApiError> {
    usable6(subnet)?;
    if !config.ip_range.is_empty() {
        return Err(not_served(
            &format!("--ip-range {}", config.ip_range),
            "an IPv6 address ends with the IPv4 address. Give an IPv4 range",
        ));
    }
    if !config.gateway.is_empty() {
        match config.gateway.parse::<Ipv6Addr>() {
            Ok(gateway) if subnet.contains(&gateway) && gateway != subnet.network() => {}
            _ => return Err(lacks(config, "gateway", &config.gateway)),
        }
    }
    Ok(subnet)
}

/// Whether tasks can have addresses of the subnet.
fn usable6(subnet: Ipv6Net) -> Result<(), ApiError> {
    let refuse = |message: String| Err(ApiError::BadRequest(message));
    if subnet != subnet.trunc() {
        return refuse(format!(
            "invalid network config:\ninvalid subnet {subnet}: it should be {}",
            subnet.trunc()
        ));
    }
    let first = subnet.network();
    let is_local = first.is_unique_local();
    let is_global = first.octets()[0] & 0xe0 == 0x20;
    if !is_local && !is_global {
        return refuse(format!(
            "invalid subnet {subnet}: give one of the unique local addresses fd00::/8, or of the global ones 2000::/3"
        ));
    }
    if subnet.prefix_len() > PREFIX6_MAX {
        return refuse(format!(
            "invalid subnet {subnet}: an IPv6 address ends with the IPv4 address: give a /{PREFIX6_MAX} or larger"
        ));
    }
    Ok(())
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
        wanted_of(configs, false).map(|wanted| wanted.subnet.map(|subnet| subnet.to_string()))
    }

    fn wanted_of(configs: &Value, has_ipv6: bool) -> Result<Wanted, (u16, String)> {
        let body = json!({"EnableIPv6": has_ipv6, "IPAM": {"Driver": "default", "Config": configs}});
        let spec: NetworkSpec = serde_json::from_value(body).unwrap();
        wanted(&spec).map_err(|error| (error.status().as_u16(), error.message()))
    }

    #[test]
    fn a_network_with_ipv6_has_a_subnet_of_each_version() {
        let both = json!([{"Subnet": "fd00:55::/64", "Gateway": "fd00:55::9"}, {"Subnet": "10.55.0.0/24"}]);
        let wanted = wanted_of(&both, true).unwrap();
        assert_eq!(wanted.subnet, "10.55.0.0/24".parse().ok());
        assert_eq!(wanted.subnet6, "fd00:55::/64".parse().ok());
        let none = wanted_of(&json!([]), true).unwrap();
        assert_eq!(none, Wanted { has_ipv6: true, ..Wanted::default() }, "the cluster chooses both");
        let six = wanted_of(&json!([{"Subnet": "2001:db8:7::/48"}]), true).unwrap();
        assert_eq!((six.subnet, six.subnet6), (None, "2001:db8:7::/48".parse().ok()));
    }

    #[test]
    fn an_ipv6_subnet_of_no_use_is_refused() {
        let subnet = "fd00:55::/64";
        for (config, status, named) in [
            (json!({"Subnet": "fd00:55::/97"}), 400, "/96 or larger"),
            (json!({"Subnet": "fd00:55::7/64"}), 400, "it should be fd00:55::/64"),
            (json!({"Subnet": "fe80::/64"}), 400, "fd00::/8"),
            (json!({"Subnet": "ff02::/64"}), 400, "fd00::/8"),
            (json!({"Subnet": "::/64"}), 400, "fd00::/8"),
            (json!({"Subnet": subnet, "Gateway": "fd00:56::1"}), 400, "does not contain gateway fd00:56::1"),
            (json!({"Subnet": subnet, "Gateway": "10.0.0.1"}), 400, "does not contain gateway 10.0.0.1"),
            (json!({"Subnet": subnet, "IPRange": "fd00:55::/80"}), 501, "--ip-range fd00:55::/80"),
        ] {
            let (seen, message) = wanted_of(&json!([config]), true).expect_err("accepted");
            assert!(seen == status && message.contains(named), "for {config}: {seen} {message}");
        }
        let twice = json!([{"Subnet": subnet}, {"Subnet": "fd00:56::/64"}]);
        assert!(
            wanted_of(&twice, true)
                .is_err_and(|(status, message)| status == 501 && message.contains("twice"))
        );
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
            (json!([{"Subnet": "fd00:55::/64"}]), 400, "give --ipv6 as well"),
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
