//! The filters, in Swarm's order: ready, resources, plugin, constraints, platform, host port, max replicas per node.
//!
//! Invariant: a node is refused by the first filter that does so; nothing else is asked of it then.

use mesh_state::ids::ServiceId;
use mesh_state::node::Node;
use mesh_state::spec::{Protocol, PublishMode, ServiceSpec, TaskSpec};
use serde_json::Value;

use super::explain::Refusal;
use super::generic::{self, Wanted};
use super::load::Load;
use crate::slots::eligible::Suits;

/// What a task needs of a node, read once from its spec.
#[derive(Debug, Clone)]
pub struct Needs<'a> {
    /// Its service.
    pub service: &'a ServiceId,
    /// Billionths of a CPU.
    pub nano_cpus: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Ports that it binds on its node.
    pub host_ports: Vec<(Protocol, u16)>,
    /// Tasks of its service that a node may have; 0 is unlimited.
    pub max_replicas: u64,
    /// Engine plugins as (type, name).
    plugins: Vec<(&'static str, String)>,
    /// Generic resources.
    pub generic: Wanted,
    suits: Suits,
}

impl<'a> Needs<'a> {
    /// What tasks made from `spec` need.
    pub fn new(service: &'a ServiceId, spec: &ServiceSpec) -> Self {
        let template = &spec.task_template;
        let reservations = template.resources.as_ref().and_then(|resources| resources.reservations.as_ref());
        Self {
            service,
            nano_cpus: reservations.and_then(|wanted| wanted.nano_cpus).unwrap_or_default(),
            memory_bytes: reservations.and_then(|wanted| wanted.memory_bytes).unwrap_or_default(),
            host_ports: host_ports(spec),
            max_replicas: template.placement.as_ref().map_or(0, |placement| placement.max_replicas),
            plugins: plugins(template),
            generic: generic::wanted(template.resources.as_ref()),
            suits: Suits::new(template),
        }
    }
}

/// Why a node can't take one more such task; `None` if it can.
pub fn refusal(needs: &Needs<'_>, load: &Load<'_>) -> Option<Refusal> {
    if !load.takes_tasks {
        Some(Refusal::Ready)
    } else if !has_resources(needs, load) {
        Some(Refusal::Resources)
    } else if !has_plugins(needs, load.node) {
        Some(Refusal::Plugin)
    } else if !needs.suits.constraints_hold(load.node) {
        Some(Refusal::Constraints)
    } else if !needs.suits.platform_fits(load.node) {
        Some(Refusal::Platform)
    } else if needs.host_ports.iter().any(|port| load.host_ports.contains(port)) {
        Some(Refusal::HostPort)
    } else if needs.max_replicas > 0 && u64::from(load.tasks_of(needs.service)) >= needs.max_replicas {
        Some(Refusal::MaxReplicas)
    } else {
        None
    }
}

/// A task that reserves nothing fits even a node that shrank below what it carries.
fn has_resources(needs: &Needs<'_>, load: &Load<'_>) -> bool {
    (needs.nano_cpus <= 0 || needs.nano_cpus <= load.free_nano_cpus)
        && (needs.memory_bytes <= 0 || needs.memory_bytes <= load.free_memory_bytes)
        && load.free_generic.has(&needs.generic)
}

fn has_plugins(needs: &Needs<'_>, node: &Node) -> bool {
    needs.plugins.iter().all(|(kind, name)| {
        let mut of_kind = node.description.plugins.iter().filter(|(have, _)| have == kind).peekable();
        // A node that lists no log drivers just doesn't tell.
        (*kind == "Log" && of_kind.peek().is_none()) || of_kind.any(|(_, have)| have == name)
    })
}

fn host_ports(spec: &ServiceSpec) -> Vec<(Protocol, u16)> {
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    ports
        .filter(|port| port.publish_mode == PublishMode::Host && port.published_port != 0)
        .map(|port| (port.protocol, port.published_port))
        .collect()
}

/// Volume drivers of the mounts and the log driver, but for those that every engine has.
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
