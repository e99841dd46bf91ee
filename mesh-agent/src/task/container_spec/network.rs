//! The network that a task's container is made on; it is put on the others before its start. Pure.

use std::collections::{BTreeMap, HashMap};

use mesh_state::task::Assignment;

use super::ContainerPlan;
use crate::task::bridge::NETWORK_NAME;
use crate::task::container::{Addresses, NetworkPlace};
use crate::task::docker::model::{EndpointIpamConfig, EndpointSettings, NetworkingConfig};

/// Whether a task reaches nothing outside its networks, and nothing outside reaches it: it is not
/// on the network `mesh` then, by which the way out and published ports lead. The user says so with
/// `--internal` of every network of the service.
pub fn is_confined(assignment: &Assignment) -> bool {
    let publishes = !assignment.task.endpoints.is_empty() || !assignment.host_ports.is_empty();
    let networks = &assignment.networks;
    !publishes && !networks.is_empty() && networks.iter().all(|network| network.internal)
}

/// The network that the container is made on.
pub(super) fn first_name(assignment: &Assignment) -> String {
    match assignment.networks.first() {
        Some(first) if is_confined(assignment) => first.name.clone(),
        _ => NETWORK_NAME.to_owned(),
    }
}

/// The container's place on it.
pub(super) fn first_endpoint(assignment: &Assignment) -> NetworkingConfig {
    let first = assignment.networks.first().filter(|_| is_confined(assignment)).map(Addresses::from);
    let endpoint = EndpointSettings {
        ipam_config: first.map(|addresses| addresses.settings()),
        ..EndpointSettings::default()
    };
    NetworkingConfig { endpoints_config: Some(HashMap::from([(first_name(assignment), endpoint)])) }
}

impl Addresses {
    /// The request for these addresses.
    pub fn settings(&self) -> EndpointIpamConfig {
        EndpointIpamConfig {
            ipv4_address: Some(self.v4.to_string()),
            ipv6_address: self.v6.map(|address| address.to_string()),
            ..EndpointIpamConfig::default()
        }
    }

    /// The addresses that such a request names, if it names an IPv4 address.
    pub fn from_settings(settings: &EndpointIpamConfig) -> Option<Self> {
        let v4 = settings.ipv4_address.as_deref()?.parse().ok()?;
        Some(Self { v4, v6: settings.ipv6_address.as_deref().and_then(|address| address.parse().ok()) })
    }
}

impl ContainerPlan {
    /// The container's places on networks, as it is made.
    pub fn places(&self) -> BTreeMap<String, NetworkPlace> {
        let made = self.body.networking_config.as_ref().and_then(|config| config.endpoints_config.as_ref());
        let place = |endpoint: &EndpointSettings| {
            let wanted = endpoint.ipam_config.as_ref().and_then(Addresses::from_settings);
            NetworkPlace { network: None, wanted }
        };
        made.into_iter().flatten().map(|(name, endpoint)| (name.clone(), place(endpoint))).collect()
    }
}
