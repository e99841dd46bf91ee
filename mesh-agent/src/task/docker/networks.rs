//! The engine's networks: the one of this node's tasks, as [`bridge`](crate::task::bridge) plans it.

use std::net::Ipv4Addr;

use bollard::models::{
    ContainerSummaryStateEnum, EventMessage, Ipam, IpamConfig, NetworkCreateRequest, NetworkInspect,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use ipnet::Ipv4Net;
use mesh_state::ids::TaskId;

use super::{CALL_TIMEOUT, DockerEngine, failed, failed_or_absent, present};
use crate::task::bridge::{BridgeFacts, BridgePlan, DEVICE, NETWORK_LABEL, NETWORK_NAME};
use crate::task::runtime::RuntimeError;

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

    pub(super) async fn find_bridge(&self) -> Result<Option<BridgeFacts>, RuntimeError> {
        let inspected = self.client(CALL_TIMEOUT)?.inspect_network(NETWORK_NAME, None).await;
        let Some(network) = present(inspected.map_err(failed_or_absent))? else { return Ok(None) };
        let users = self.list(("network", NETWORK_NAME.to_owned())).await?;
        let ended = [Some(ContainerSummaryStateEnum::EXITED), Some(ContainerSummaryStateEnum::DEAD)];
        let users = users.iter().filter(|container| !ended.contains(&container.state)).count();
        let has_ipv6 = network.enable_ipv6.unwrap_or_default();
        Ok(Some(BridgeFacts { subnet: subnet(&network), has_ipv6, users }))
    }

    pub(super) async fn make_bridge(&self, plan: &BridgePlan) -> Result<(), RuntimeError> {
        let options = [
            ("com.docker.network.bridge.name", DEVICE.to_owned()),
            ("com.docker.network.driver.mtu", plan.mtu.to_string()),
        ];
        let subnets = plan.subnet.map(|subnet| subnet.to_string()).into_iter();
        let subnets = subnets.chain(plan.subnet6().map(|subnet| subnet.to_string()));
        let config =
            subnets.map(|subnet| IpamConfig { subnet: Some(subnet), ..IpamConfig::default() }).collect();
        let request = NetworkCreateRequest {
            name: NETWORK_NAME.to_owned(),
            driver: Some("bridge".to_owned()),
            options: Some(options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ipam: Some(Ipam { config: Some(config), ..Ipam::default() }),
            enable_ipv6: Some(plan.subnet6().is_some()),
            labels: Some([(NETWORK_LABEL.to_owned(), String::new())].into()),
            ..NetworkCreateRequest::default()
        };
        self.client(CALL_TIMEOUT)?.create_network(request).await.map(drop).map_err(failed)
    }

    pub(super) async fn drop_bridge(&self) -> Result<(), RuntimeError> {
        let removed = self.client(CALL_TIMEOUT)?.remove_network(NETWORK_NAME).await;
        present(removed.map_err(failed_or_absent)).map(drop)
    }
}

fn subnet(network: &NetworkInspect) -> Option<Ipv4Net> {
    let configs = network.ipam.as_ref()?.config.as_ref()?;
    configs.iter().filter_map(|config| config.subnet.as_deref()).find_map(|subnet| subnet.parse().ok())
}
