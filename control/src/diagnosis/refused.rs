//! Which nodes a waiting task can't run on, and why, in words.

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::ids::ServiceId;
use mesh_state::node::{Availability, Node, NodeState};
use mesh_state::service::Service;
use mesh_state::spec::ServiceSpec;
use mesh_state::task::{Slot, Task};
use serde::Serialize;

use super::counted;
use crate::feed::snapshot::ClusterSnapshot;
use crate::planners::scheduler::explain::Refusal;
use crate::planners::scheduler::filter;
use crate::planners::scheduler::needs::Needs;
use crate::planners::scheduler::usage::{NodeUsage, NodeUsages};
use crate::slots::constraint::Constraint;
use crate::slots::eligible::{Suits, takes_new};

/// Billionths of a CPU, and bytes of a mebibyte.
const CPU: f64 = 1e9;
const MEBIBYTE: f64 = 1_048_576.0;

/// Nodes that are refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Refused {
    /// The reason: `constraint node.labels.zone==a is not met`.
    pub reason: String,
    /// The nodes' names, sorted.
    pub nodes: Vec<String>,
}

impl Refused {
    /// `2 nodes: constraint node.labels.zone==a is not met`.
    pub(super) fn line(&self) -> String {
        format!("{}: {}", counted(self.nodes.len(), "node"), self.reason)
    }
}

/// The nodes that can't take the task now, grouped by reason; most nodes first.
pub(super) fn nodes(now: Timestamp, snapshot: &ClusterSnapshot, task: &Task) -> Vec<Refused> {
    let Some(spec) = snapshot.spec_of(task) else { return Vec::new() };
    let needs = Needs::new(snapshot, &task.service_id, spec);
    let usages = NodeUsages::new(now, snapshot);
    let mut grouped: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for usage in usages.iter().filter(|usage| is_asked(task, usage.node)) {
        if let Some(refusal) = filter::refusal(&needs, usage) {
            let reason = reason(snapshot, spec, &task.service_id, &needs, usage, refusal);
            grouped.entry(reason).or_default().push(usage.node.description.hostname.clone());
        }
    }
    in_order(grouped)
}

/// The nodes that may not run the task of a global service, grouped by reason; most nodes first.
pub(super) fn left_out(snapshot: &ClusterSnapshot, service: &Service) -> Vec<Refused> {
    let suits = Suits::new(&service.spec.task_template);
    let mut grouped: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in snapshot.nodes.values().filter(|node| !takes_new(snapshot, node, &suits)) {
        let reason = if !suits.constraints_hold(node) {
            unmet(&service.spec, node)
        } else if suits.platform_fits(node) {
            unavailable(snapshot, node)
        } else {
            no_build(node)
        };
        grouped.entry(reason).or_default().push(node.description.hostname.clone());
    }
    in_order(grouped)
}

fn in_order(grouped: BTreeMap<String, Vec<String>>) -> Vec<Refused> {
    let mut refused: Vec<Refused> = grouped
        .into_iter()
        .map(|(reason, mut nodes)| {
            nodes.sort_unstable();
            Refused { reason, nodes }
        })
        .collect();
    refused.sort_by_key(|one| std::cmp::Reverse(one.nodes.len()));
    refused
}

/// A task of a global service asks its own node only.
fn is_asked(task: &Task, node: &Node) -> bool {
    match &task.slot {
        Slot::Node(id) => *id == node.id,
        Slot::Number(_) => true,
    }
}

fn reason(
    snapshot: &ClusterSnapshot,
    spec: &ServiceSpec,
    service: &ServiceId,
    needs: &Needs<'_>,
    usage: &NodeUsage<'_>,
    refusal: Refusal,
) -> String {
    match refusal {
        Refusal::Ready => unavailable(snapshot, usage.node),
        Refusal::Resources => resources(needs, usage),
        Refusal::Constraints => unmet(spec, usage.node),
        Refusal::Plugin => {
            let wanted: Vec<String> =
                needs.plugins.iter().map(|(kind, name)| format!("{kind}/{name}")).collect();
            format!("plugin {} is missing", wanted.join(" or "))
        }
        Refusal::OldAgent => "its agent is too old for overlay networks".to_owned(),
        Refusal::NoPrograms => "no kernel programs for overlay networks (datapath userspace)".to_owned(),
        Refusal::HostOverlap => "the host has addresses of one of the service's networks".to_owned(),
        Refusal::NoEncryption => "it can't encrypt the packets of an encrypted network".to_owned(),
        Refusal::Platform => no_build(usage.node),
        Refusal::HostPort => {
            let taken = needs.host_ports.iter().find(|port| usage.host_ports.contains(port));
            let port = taken.map(|(protocol, port)| format!(" {port}/{protocol}")).unwrap_or_default();
            format!("host-mode port{port} is in use")
        }
        Refusal::MaxReplicas => {
            format!(
                "it runs {} of at most {} tasks of the service",
                usage.tasks_of(service),
                needs.max_replicas
            )
        }
    }
}

fn no_build(node: &Node) -> String {
    format!("the image has no build for {}/{}", node.description.os, node.description.architecture)
}

fn unavailable(snapshot: &ClusterSnapshot, node: &Node) -> String {
    match (node.spec.availability, snapshot.node_state(&node.id)) {
        (Availability::Drain, _) => "availability is drain".to_owned(),
        (Availability::Pause, _) => "availability is pause".to_owned(),
        (Availability::Active, NodeState::Down) => "down".to_owned(),
        (Availability::Active, _) if !node.description.unfit.is_empty() => node.description.unfit.clone(),
        (Availability::Active, NodeState::Silent) => "silent".to_owned(),
        (Availability::Active, NodeState::Ready) => "not ready for tasks yet".to_owned(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn resources(needs: &Needs<'_>, usage: &NodeUsage<'_>) -> String {
    let has = &usage.node.description;
    if needs.nano_cpus > 0 && needs.nano_cpus > usage.free_nano_cpus {
        return format!(
            "{:.1} CPUs wanted, {:.1} of {:.1} free",
            needs.nano_cpus as f64 / CPU,
            usage.free_nano_cpus as f64 / CPU,
            has.nano_cpus as f64 / CPU
        );
    }
    if needs.memory_bytes > 0 && needs.memory_bytes > usage.free_memory_bytes {
        return format!(
            "{:.0} MiB of memory wanted, {:.0} of {:.0} free",
            needs.memory_bytes as f64 / MEBIBYTE,
            usage.free_memory_bytes as f64 / MEBIBYTE,
            has.memory_bytes as f64 / MEBIBYTE
        );
    }
    "generic resources are used up".to_owned()
}

/// The first constraint that does not hold.
fn unmet(spec: &ServiceSpec, node: &Node) -> String {
    let placement = spec.task_template.placement.as_ref();
    let constraints = placement.map_or(&[][..], |placement| placement.constraints.as_slice());
    let holds = |text: &&String| text.parse::<Constraint>().is_ok_and(|constraint| constraint.holds(node));
    match constraints.iter().find(|text| !holds(text)) {
        Some(text) => format!("constraint {text} is not met"),
        None => "a constraint is not met".to_owned(),
    }
}
