//! A task's needs of a node, read from its service's spec.
//!
//! Left to others: whether a node meets them ([`super::filter`]), and what is free on it
//! ([`super::usage`]).

use ipnet::Ipv4Net;
use mesh_state::ids::ServiceId;
use mesh_state::spec::{Protocol, PublishMode, ServiceSpec, TaskSpec};
use serde_json::Value;

use super::generic::{self, WantedResources};
use crate::feed::snapshot::ClusterSnapshot;
use crate::slots::eligible::Suits;
use crate::slots::networks::named_by;

/// A task's needs of a node, read once from its spec.
#[derive(Debug, Clone)]
pub struct Needs<'a> {
    /// The task's service.
    pub service: &'a ServiceId,
    /// Reserved billionths of a CPU.
    pub nano_cpus: i64,
    /// Reserved bytes of memory.
    pub memory_bytes: i64,
    /// Published ports in host mode.
    pub host_ports: Vec<(Protocol, u16)>,
    /// The most tasks of its service per node; 0 is unlimited.
    pub max_replicas: u64,
    /// Engine plugins as (type, name).
    pub plugins: Vec<(&'static str, String)>,
    /// Generic resources that the task requests.
    pub generic: WantedResources,
    /// Whether the task is on networks.
    pub is_on_networks: bool,
    /// The subnets of these networks.
    pub subnets: Vec<Ipv4Net>,
    /// Whether one of these is encrypted.
    pub is_on_encrypted_networks: bool,
    /// Placement constraints and platforms.
    pub suits: Suits,
}

impl<'a> Needs<'a> {
    /// The needs of tasks made from `spec`, on the networks of `snapshot`.
    pub fn new(snapshot: &ClusterSnapshot, service: &'a ServiceId, spec: &ServiceSpec) -> Self {
        let template = &spec.task_template;
        let reservations = template.resources.as_ref().and_then(|resources| resources.reservations.as_ref());
        let networks = named_by(spec);
        let stored = || networks.iter().filter_map(|named| snapshot.networks.get(&named.id));
        Self {
            service,
            nano_cpus: reservations.and_then(|wanted| wanted.nano_cpus).unwrap_or_default(),
            memory_bytes: reservations.and_then(|wanted| wanted.memory_bytes).unwrap_or_default(),
            host_ports: host_ports(spec),
            max_replicas: template.placement.as_ref().map_or(0, |placement| placement.max_replicas),
            plugins: plugins(template),
            generic: generic::wanted(template.resources.as_ref()),
            is_on_networks: !networks.is_empty(),
            subnets: stored().map(|network| network.subnet).collect(),
            is_on_encrypted_networks: stored().any(|network| network.is_encrypted()),
            suits: Suits::new(template),
        }
    }
}

fn host_ports(spec: &ServiceSpec) -> Vec<(Protocol, u16)> {
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    ports
        .filter(|port| port.publish_mode == PublishMode::Host && port.published_port != 0)
        .map(|port| (port.protocol, port.published_port))
        .collect()
}

/// Volume drivers of the mounts and the log driver, except for those that every engine has.
fn plugins(template: &TaskSpec) -> Vec<(&'static str, String)> {
    let mounts = template.container_spec.as_ref().and_then(|container| container.extra.get("Mounts"));
    let volume = mounts
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|mount| mount.pointer("/VolumeOptions/DriverConfig/Name").and_then(Value::as_str))
        .filter(|name| !name.is_empty() && *name != "local")
        .map(|name| ("Volume", name.to_owned()));
    let log = template
        .extra
        .get("LogDriver")
        .and_then(|driver| driver.get("Name"))
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty() && *name != "none")
        .map(|name| ("Log", name.to_owned()));
    volume.chain(log).collect()
}
