//! `Network`: as `/networks` shows it, and as a task's attachment refers to it.

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use mesh_state::network::{Ipam, IpamConfig, Network as StoredNetwork};
use mesh_state::spec::Labels;
use serde::Serialize;
use serde_json::{Value, json};

use super::Version;
use super::network_members::{EndpointResource, Members, Peer, ServiceInfo};
use crate::feed::snapshot::Versioned;

/// A cluster-wide network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network {
    name: String,
    id: String,
    created: Timestamp,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: Value,
    config_only: bool,
    containers: Option<BTreeMap<String, EndpointResource>>,
    options: Option<BTreeMap<String, String>>,
    labels: Option<Labels>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    peers: Vec<Peer>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    services: BTreeMap<String, ServiceInfo>,
}

impl Network {
    /// The API object of a stored network.
    pub(crate) fn new(network: &StoredNetwork) -> Self {
        let spec = &network.spec;
        Self {
            name: network.name.clone(),
            id: network.id.to_string(),
            created: network.created_at,
            scope: "swarm",
            driver: "overlay",
            enable_ipv4: true,
            enable_ipv6: spec.enable_ipv6.unwrap_or(false),
            ipam: ipam(network),
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: network.ingress,
            config_from: json!({"Network": ""}),
            config_only: false,
            containers: None,
            options: spec.options.clone().filter(|options| !options.is_empty()),
            labels: spec.labels.clone().filter(|labels| !labels.is_empty()),
            peers: Vec::new(),
            services: BTreeMap::new(),
        }
    }

    /// With who is on it: the containers of node `own` and, if there are any, the nodes that have
    /// some.
    #[must_use]
    pub(crate) fn with_members(mut self, members: &Members<'_>, own: Option<&NodeId>) -> Self {
        self.containers = own.and_then(|own| members.containers_of(own));
        if self.containers.is_some() {
            self.peers = members.peers();
        }
        self
    }

    /// With the services on it.
    #[must_use]
    pub(crate) fn with_services(mut self, members: &Members<'_>) -> Self {
        self.services = members.services();
        self
    }
}

/// The network's subnets with their gateways, and the range that its user asked for.
fn ipam(network: &StoredNetwork) -> Ipam {
    let mut ipam = network.spec.ipam.clone().unwrap_or_default();
    ipam.options = ipam.options.filter(|options| !options.is_empty());
    if ipam.driver.is_empty() {
        "default".clone_into(&mut ipam.driver);
    }
    let own = IpamConfig {
        subnet: network.subnet.to_string(),
        ip_range: network.asked().map(|config| config.ip_range.clone()).unwrap_or_default(),
        gateway: network.gateway().map(|gateway| gateway.to_string()).unwrap_or_default(),
        ..IpamConfig::default()
    };
    let own6 = network.subnet6.map(|subnet| IpamConfig {
        subnet: subnet.to_string(),
        gateway: network.gateway6().map(|gateway| gateway.to_string()).unwrap_or_default(),
        ..IpamConfig::default()
    });
    ipam.config = Some(std::iter::once(own).chain(own6).collect());
    ipam
}

/// The network in a task's attachment; unlike in `/networks`, its id is spelled `ID`, and it has a
/// spec.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AttachedNetwork {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: Timestamp,
    updated_at: Timestamp,
    spec: AttachedSpec,
    driver_state: Value,
    #[serde(rename = "IPAMOptions")]
    ipam_options: Value,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AttachedSpec {
    name: String,
    labels: Labels,
    driver_configuration: Value,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    internal: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    attachable: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ingress: bool,
    #[serde(rename = "IPAMOptions")]
    ipam_options: Value,
    scope: &'static str,
}

impl AttachedNetwork {
    /// The API object of a stored network.
    pub(crate) fn new(network: &Versioned<StoredNetwork>) -> Self {
        let ipam = ipam(network);
        let driver = json!({"Name": ipam.driver});
        Self {
            id: network.id.to_string(),
            version: Version { index: network.mod_revision },
            created_at: network.created_at,
            updated_at: network.created_at,
            spec: AttachedSpec {
                name: network.name.clone(),
                labels: network.spec.labels.clone().unwrap_or_default(),
                driver_configuration: driver_configuration(network),
                internal: network.spec.internal,
                attachable: network.spec.attachable,
                ingress: network.ingress,
                ipam_options: json!({"Driver": if network.ingress { json!({}) } else { driver.clone() }}),
                scope: "swarm",
            },
            driver_state: json!({"Name": "overlay"}),
            ipam_options: json!({"Driver": driver, "Configs": ipam.config}),
        }
    }
}

fn driver_configuration(network: &StoredNetwork) -> Value {
    match &network.spec.options {
        _ if network.ingress => json!({}),
        Some(options) if !options.is_empty() => json!({"Name": "overlay", "Options": options}),
        _ => json!({"Name": "overlay"}),
    }
}
