//! `Network`, as `/networks` shows it.

use mesh_state::Timestamp;
use mesh_state::network::Network as StoredNetwork;
use serde::Serialize;
use serde_json::{Map, Value};

/// A cluster-wide network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network {
    id: String,
    name: String,
    created: Timestamp,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_only: bool,
    containers: Map<String, Value>,
    options: Map<String, Value>,
    labels: Map<String, Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: &'static str,
    options: Option<Map<String, Value>>,
    config: Vec<IpamConfig>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct IpamConfig {
    subnet: String,
}

impl Network {
    /// The network as it is stored.
    pub(crate) fn new(network: &StoredNetwork) -> Self {
        Self {
            id: network.id.to_string(),
            name: network.name.clone(),
            created: network.created_at,
            scope: "swarm",
            driver: "overlay",
            enable_ipv6: false,
            ipam: Ipam {
                driver: "default",
                options: None,
                config: vec![IpamConfig { subnet: network.subnet.to_string() }],
            },
            internal: false,
            attachable: false,
            ingress: network.ingress,
            config_only: false,
            containers: Map::new(),
            options: Map::new(),
            labels: Map::new(),
        }
    }
}
