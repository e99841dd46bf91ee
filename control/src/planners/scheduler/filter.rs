//! The filters, in Swarm's order: ready, resources, plugin, networks, constraints, platform, host
//! port, max replicas per node.
//!
//! Invariant: the first filter that refuses a node decides; the later ones are not evaluated then.

use mesh_state::node::Node;

use super::explain::Refusal;
use super::needs::Needs;
use super::usage::NodeUsage;
use crate::slots::eligible::has_programs;
use crate::slots::host_overlap;

/// The reason why a node can't take one more task with these needs; `None` if it can.
pub fn refusal(needs: &Needs<'_>, usage: &NodeUsage<'_>) -> Option<Refusal> {
    if !usage.takes_tasks {
        Some(Refusal::Ready)
    } else if !has_resources(needs, usage) {
        Some(Refusal::Resources)
    } else if !has_plugins(needs, usage.node) {
        Some(Refusal::Plugin)
    } else if needs.is_on_networks && !usage.node.description.takes_networks {
        Some(Refusal::OldAgent)
    } else if needs.is_on_networks && !has_programs(usage.node) {
        Some(Refusal::NoPrograms)
    } else if needs.subnets.iter().any(|subnet| host_overlap::inside(usage.host_networks, *subnet).is_some())
    {
        Some(Refusal::HostOverlap)
    } else if needs.is_on_encrypted_networks && usage.node.description.encryption.is_none() {
        Some(Refusal::NoEncryption)
    } else if !needs.suits.constraints_hold(usage.node) {
        Some(Refusal::Constraints)
    } else if !needs.suits.platform_fits(usage.node) {
        Some(Refusal::Platform)
    } else if needs.host_ports.iter().any(|port| usage.host_ports.contains(port)) {
        Some(Refusal::HostPort)
    } else if needs.max_replicas > 0 && u64::from(usage.tasks_of(needs.service)) >= needs.max_replicas {
        Some(Refusal::MaxReplicas)
    } else {
        None
    }
}

/// A task that reserves nothing fits even a node that has shrunk below its reservations.
fn has_resources(needs: &Needs<'_>, usage: &NodeUsage<'_>) -> bool {
    (needs.nano_cpus <= 0 || needs.nano_cpus <= usage.free_nano_cpus)
        && (needs.memory_bytes <= 0 || needs.memory_bytes <= usage.free_memory_bytes)
        && usage.free_generic.has(&needs.generic)
}

fn has_plugins(needs: &Needs<'_>, node: &Node) -> bool {
    needs.plugins.iter().all(|(kind, name)| {
        let mut of_kind = node.description.plugins.iter().filter(|(have, _)| have == kind).peekable();
        // A node without a list of log drivers doesn't report them, so the driver counts as
        // present.
        (*kind == "Log" && of_kind.peek().is_none()) || of_kind.any(|(_, have)| have == name)
    })
}
