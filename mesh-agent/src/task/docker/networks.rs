//! The engine's networks: the one of this node's tasks ([`bridge`](crate::task::bridge)), and those
//! of their services ([`networks`](crate::task::networks)).

use std::collections::HashMap;
use std::net::Ipv4Addr;

use bollard::models::{
    ContainerSummary, ContainerSummaryStateEnum, EndpointSettings, EventMessage, Ipam, IpamConfig,
    NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest, NetworkInspect,
};
use bollard::query_parameters::ListNetworksOptions;
use futures::StreamExt;
use futures::stream::BoxStream;
use ipnet::Ipv4Net;
use mesh_state::ids::TaskId;

use super::{CALL_TIMEOUT, DockerEngine, failed, failed_or_absent, present};
use crate::task::bridge::NETWORK_NAME;
use crate::task::container::{Addresses, NetworkPlace};
use crate::task::container_spec::NODE_LABEL;
use crate::task::networks::{NETWORK_LABEL, NetworkFacts, NetworkPlan, NetworkUsers, OwnNetwork};
use crate::task::runtime::RuntimeError;

/// Options of the engine's bridge driver.
const DEVICE_OPTION: &str = "com.docker.network.bridge.name";
const MTU_OPTION: &str = "com.docker.network.driver.mtu";
const MASQUERADE_OPTION: &str = "com.docker.network.bridge.enable_ip_masquerade";

impl DockerEngine {
    /// An item for each removal of the network `mesh`.
    pub(super) fn removals(&self) -> BoxStream<'static, Result<(), RuntimeError>> {
        self.bridge_events("destroy").map(|event| event.map(drop)).boxed()
    }

    /// The tasks whose containers get an address on the network `mesh`. The engine sets up the
    /// networks of a container before it makes its process; the container itself can't be inspected
    /// until its start is over, the network can.
    pub(super) fn joins(&self) -> BoxStream<'static, Result<(TaskId, Ipv4Addr), RuntimeError>> {
        let engine = self.clone();
        let joined = move |event: Result<EventMessage, RuntimeError>| {
            let engine = engine.clone();
            async move {
                match event {
                    Ok(event) => {
                        let container = event.actor?.attributes?.remove("container")?;
                        engine.joined(&container).await.transpose()
                    }
                    Err(error) => Some(Err(error)),
                }
            }
        };
        self.bridge_events("connect").filter_map(joined).boxed()
    }

    fn bridge_events(&self, event: &str) -> BoxStream<'static, Result<EventMessage, RuntimeError>> {
        self.follow(&[("type", &["network"]), ("network", &[NETWORK_NAME]), ("event", &[event])], None)
    }

    /// The task of a container on the network `mesh`, and its address there. The container's name
    /// ends with the task's id.
    async fn joined(&self, container: &str) -> Result<Option<(TaskId, Ipv4Addr)>, RuntimeError> {
        let inspected = self.client(CALL_TIMEOUT)?.inspect_network(NETWORK_NAME, None).await;
        let endpoint = |network: NetworkInspect| {
            let endpoint = network.containers?.remove(container)?;
            let (_, task) = endpoint.name.as_deref()?.rsplit_once('.')?;
            let address: Ipv4Net = endpoint.ipv4_address?.parse().ok()?;
            Some((TaskId::from(task), address.addr()))
        };
        Ok(present(inspected.map_err(failed_or_absent))?.and_then(endpoint))
    }

    pub(super) async fn find_network(&self, name: &str) -> Result<Option<NetworkFacts>, RuntimeError> {
        let inspected = self.client(CALL_TIMEOUT)?.inspect_network(name, None).await;
        let found = present(inspected.map_err(failed_or_absent))?;
        // Without a network of the name, the engine takes it for the beginning of an id.
        Ok(found.filter(|network| network.name.as_deref() == Some(name)).map(facts))
    }

    pub(super) async fn list_own_networks(&self) -> Result<Vec<OwnNetwork>, RuntimeError> {
        let filters = HashMap::from([("label".to_owned(), vec![NETWORK_LABEL.to_owned()])]);
        let options = ListNetworksOptions { filters: Some(filters) };
        let networks = self.client(CALL_TIMEOUT)?.list_networks(Some(options)).await.map_err(failed)?;
        let own = networks.into_iter().filter_map(|network| {
            let label = network.labels?.remove(NETWORK_LABEL)?;
            Some(OwnNetwork { id: network.id?, name: network.name?, label })
        });
        Ok(own.collect())
    }

    pub(super) async fn put_on_network(
        &self,
        container: &str,
        network: &str,
        at: Addresses,
    ) -> Result<(), RuntimeError> {
        let request = NetworkConnectRequest {
            container: container.to_owned(),
            endpoint_config: Some(EndpointSettings {
                ipam_config: Some(at.settings()),
                ..EndpointSettings::default()
            }),
        };
        self.client(CALL_TIMEOUT)?.connect_network(network, request).await.map_err(failed)
    }

    pub(super) async fn take_off_network(&self, container: &str, network: &str) -> Result<(), RuntimeError> {
        let request = NetworkDisconnectRequest { container: container.to_owned(), force: Some(true) };
        self.client(CALL_TIMEOUT)?.disconnect_network(network, request).await.map_err(failed)
    }
}

/// The engine's request for a network.
pub(super) fn request(plan: &NetworkPlan) -> NetworkCreateRequest {
    let mut options = vec![(DEVICE_OPTION, plan.device.clone()), (MTU_OPTION, plan.mtu.to_string())];
    if plan.internal {
        options.push((MASQUERADE_OPTION, "false".to_owned()));
    }
    let own = IpamConfig {
        subnet: Some(plan.subnet.to_string()),
        gateway: plan.gateway.map(|gateway| gateway.to_string()),
        ..IpamConfig::default()
    };
    let own6 = plan.subnet6.map(|subnet| IpamConfig {
        subnet: Some(subnet.to_string()),
        gateway: plan.gateway6.map(|gateway| gateway.to_string()),
        ..IpamConfig::default()
    });
    NetworkCreateRequest {
        name: plan.name.clone(),
        driver: Some("bridge".to_owned()),
        internal: Some(plan.internal),
        options: Some(options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ipam: Some(Ipam { config: Some(std::iter::once(own).chain(own6).collect()), ..Ipam::default() }),
        enable_ipv6: Some(plan.subnet6.is_some()),
        labels: Some([(NETWORK_LABEL.to_owned(), plan.label.clone())].into()),
        ..NetworkCreateRequest::default()
    }
}

/// A container's place on a network, from its inspection.
pub(super) fn place(endpoint: &EndpointSettings) -> NetworkPlace {
    NetworkPlace {
        network: endpoint.network_id.clone().filter(|id| !id.is_empty()),
        wanted: endpoint.ipam_config.as_ref().and_then(Addresses::from_settings),
    }
}

/// Counts the containers of a network.
pub(super) fn users(containers: &[ContainerSummary]) -> NetworkUsers {
    let ended = [Some(ContainerSummaryStateEnum::EXITED), Some(ContainerSummaryStateEnum::DEAD)];
    let is_task = |container: &ContainerSummary| {
        container.labels.as_ref().is_some_and(|labels| labels.contains_key(NODE_LABEL))
    };
    let users =
        containers.iter().filter(|container| !is_task(container) || !ended.contains(&container.state));
    let is_unstarted_task = |container: &&ContainerSummary| {
        container.state == Some(ContainerSummaryStateEnum::CREATED) && is_task(container)
    };
    NetworkUsers {
        containers: users.clone().count(),
        unstarted_tasks: users.filter(is_unstarted_task).count(),
    }
}

fn facts(network: NetworkInspect) -> NetworkFacts {
    let configs = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let has_subnet4 = |config: &&IpamConfig| {
        config.subnet.as_deref().is_some_and(|subnet| subnet.parse::<Ipv4Net>().is_ok())
    };
    let config = configs.iter().find(has_subnet4);
    let text = |field: fn(&IpamConfig) -> Option<&String>| config.and_then(field);
    let options = network.options.unwrap_or_default();
    NetworkFacts {
        id: network.id.unwrap_or_default(),
        name: network.name.unwrap_or_default(),
        label: network.labels.and_then(|mut labels| labels.remove(NETWORK_LABEL)),
        device: options.get(DEVICE_OPTION).cloned(),
        subnet: text(|config| config.subnet.as_ref()).and_then(|subnet| subnet.parse().ok()),
        gateway: text(|config| config.gateway.as_ref()).and_then(|gateway| gateway.parse().ok()),
        mtu: options.get(MTU_OPTION).and_then(|mtu| mtu.parse().ok()),
        internal: network.internal.unwrap_or_default(),
        has_ipv6: network.enable_ipv6.unwrap_or_default(),
    }
}
