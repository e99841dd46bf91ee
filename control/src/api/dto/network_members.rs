//! Who is on a network, as `docker network inspect` shows it.
//!
//! Left to others: what only the engine of a node knows of its endpoints, their ids and MAC
//! addresses (the node's socket adds them).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use mesh_state::attachment::AttachedContainer;
use mesh_state::ids::{NodeId, ServiceId};
use mesh_state::network::Network;
use mesh_state::service::Service;
use mesh_state::task::{Task, TaskState};
use serde::Serialize;

use crate::feed::snapshot::ClusterSnapshot;

/// A container on the network.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct EndpointResource {
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
}

impl EndpointResource {
    fn new(name: String, network: &Network, address: Ipv4Addr) -> Self {
        Self {
            name,
            endpoint_id: String::new(),
            mac_address: String::new(),
            ipv4_address: network.with_prefix(address),
            ipv6_address: network.with_prefix6(address).unwrap_or_default(),
        }
    }
}

/// A node that has containers on the network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Peer {
    name: String,
    #[serde(rename = "IP")]
    ip: String,
}

/// A service on the network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ServiceInfo {
    #[serde(rename = "VIP")]
    vip: String,
    ports: Vec<String>,
    #[serde(rename = "LocalLBIndex")]
    local_lb_index: u32,
    tasks: Vec<TaskInfo>,
}

/// A running task of a service on the network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaskInfo {
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(rename = "EndpointIP")]
    endpoint_ip: String,
    info: BTreeMap<&'static str, String>,
}

/// The tasks that have an address on a network and have not ended, and the containers that are
/// attached to it.
pub(crate) struct Members<'a> {
    snapshot: &'a ClusterSnapshot,
    network: &'a Network,
    tasks: Vec<(&'a Task, &'a NodeId, Ipv4Addr)>,
    attached: Vec<(&'a AttachedContainer, Ipv4Addr)>,
}

impl<'a> Members<'a> {
    /// The members of `network`.
    pub(crate) fn of(snapshot: &'a ClusterSnapshot, network: &'a Network) -> Self {
        let member = |task: &'a Task| {
            let attachment = task.attachments.iter().find(|place| place.network_id == network.id)?;
            let has_ended = snapshot.state_of(task).is_terminal();
            Some((task, task.node_id.as_ref().filter(|_| !has_ended)?, attachment.address?))
        };
        let tasks = snapshot.tasks.values().filter_map(|task| member(&task.value)).collect();
        let attached = snapshot.attachments.values().filter(|container| container.network_id == network.id);
        let attached =
            attached.filter_map(|container| Some((&container.value, container.address?))).collect();
        Self { snapshot, network, tasks, attached }
    }

    /// The containers on a node by id, and the node's own end of the network, under the name that
    /// Swarm's load balancer has there. `None` if the node has no container on it.
    pub(super) fn containers_of(&self, node: &NodeId) -> Option<BTreeMap<String, EndpointResource>> {
        let here = self.tasks.iter().filter(|(_, task_node, _)| *task_node == node);
        let mut containers: BTreeMap<_, _> = here
            .filter_map(|(task, _, address)| {
                let container = self.snapshot.status_of(task).container.as_ref()?;
                let name = self.container_name(task)?;
                let resource = EndpointResource::new(name, self.network, *address);
                Some((container.container_id.clone(), resource))
            })
            .collect();
        let attached = self.attached.iter().filter(|(container, _)| container.node_id == *node);
        containers.extend(attached.filter(|(container, _)| !container.container_id.is_empty()).map(
            |(container, address)| {
                let resource = EndpointResource::new(container.name.clone(), self.network, *address);
                (container.container_id.clone(), resource)
            },
        ));
        if containers.is_empty() {
            return None;
        }
        if let Some(address) = self.network.node_addresses.get(node) {
            let name = &self.network.name;
            let resource = EndpointResource::new(format!("{name}-endpoint"), self.network, *address);
            containers.insert(format!("lb-{name}"), resource);
        }
        Some(containers)
    }

    /// The nodes that have tasks on the network.
    pub(super) fn peers(&self) -> Vec<Peer> {
        let attached = self.attached.iter().map(|(container, _)| &container.node_id);
        let nodes: BTreeSet<_> = self.tasks.iter().map(|(_, node, _)| *node).chain(attached).collect();
        let peers = nodes.into_iter().filter_map(|id| {
            let node = self.snapshot.nodes.get(id)?;
            let short: String = id.as_str().chars().take(12).collect();
            Some(Peer {
                name: format!("{}-{short}", node.description.hostname),
                ip: node.address?.to_string(),
            })
        });
        peers.collect()
    }

    /// The services on the network by name, each with its virtual IP and its running tasks.
    pub(super) fn services(&self) -> BTreeMap<String, ServiceInfo> {
        let mut services = BTreeMap::new();
        let ids: BTreeSet<&ServiceId> = self.tasks.iter().map(|(task, ..)| &task.service_id).collect();
        for service in ids.into_iter().filter_map(|id| self.snapshot.services.get(id)) {
            let vip = service.virtual_ips.iter().find(|vip| vip.network_id == self.network.id);
            let info = ServiceInfo {
                vip: vip.map(|vip| vip.address.to_string()).unwrap_or_default(),
                // Published ports are the ingress network's.
                ports: Vec::new(),
                local_lb_index: 0,
                tasks: self.running_tasks_of(service),
            };
            services.insert(service.spec.name.clone(), info);
        }
        // Swarm shows the containers that are no tasks as a service without a name.
        let attached = self
            .attached
            .iter()
            .map(|(container, address)| self.task_info(container.name.clone(), &container.node_id, *address));
        let tasks: Vec<_> = attached.collect();
        if !tasks.is_empty() {
            let info = ServiceInfo { vip: String::new(), ports: Vec::new(), local_lb_index: 0, tasks };
            services.insert(String::new(), info);
        }
        services
    }

    fn running_tasks_of(&self, service: &Service) -> Vec<TaskInfo> {
        let own = self.tasks.iter().filter(|(task, ..)| {
            task.service_id == service.id && self.snapshot.state_of(task) == TaskState::Running
        });
        own.map(|(task, node, address)| {
            self.task_info(self.container_name(task).unwrap_or_default(), node, *address)
        })
        .collect()
    }

    fn task_info(&self, name: String, node: &NodeId, address: Ipv4Addr) -> TaskInfo {
        let host = self.snapshot.nodes.get(node).and_then(|node| node.address);
        TaskInfo {
            name,
            endpoint_id: String::new(),
            endpoint_ip: address.to_string(),
            info: host.map(|host| ("Host IP", host.to_string())).into_iter().collect(),
        }
    }

    /// The name of a task's container.
    fn container_name(&self, task: &Task) -> Option<String> {
        let service = self.snapshot.services.get(&task.service_id)?;
        Some(format!("{}.{}", service.task_name(&task.slot), task.id))
    }
}
