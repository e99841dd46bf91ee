//! The usage of each node, kept up to date while a pass places tasks.
//!
//! Invariants: a task holds its resources and host ports until it is observed to have ended; it
//! counts as usage while it is wanted and has not ended.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use ipnet::Ipv4Net;
use mesh_state::Timestamp;
use mesh_state::ids::{NodeId, ServiceId};
use mesh_state::node::{Availability, Node, NodeState};
use mesh_state::spec::{GenericResource, Protocol};
use mesh_state::task::{Task, TaskState};

use super::generic::Free;
use super::needs::Needs;
use crate::feed::snapshot::ClusterSnapshot;
use crate::slots;

/// Failures older than this don't count.
const FAILURE_MEMORY: TimeDelta = TimeDelta::minutes(5);

/// The usage of one node.
#[derive(Debug, Clone)]
pub struct NodeUsage<'a> {
    /// The node whose use is counted.
    pub node: &'a Node,
    /// The networks of its host, sorted.
    pub host_networks: &'a [Ipv4Net],
    /// Whether the node accepts new tasks.
    pub takes_tasks: bool,
    /// Unreserved billionths of a CPU; below zero if the node has shrunk.
    pub free_nano_cpus: i64,
    /// Unreserved bytes; below zero if the node has shrunk.
    pub free_memory_bytes: i64,
    /// Generic resources that no task has.
    pub free_generic: Free,
    /// Host-mode ports in use.
    pub host_ports: BTreeSet<(Protocol, u16)>,
    /// Wanted tasks of all services.
    pub tasks: u32,
    by_service: BTreeMap<&'a ServiceId, u32>,
    failures: BTreeMap<(&'a ServiceId, u64), u32>,
}

impl<'a> NodeUsage<'a> {
    /// Wanted tasks of one service.
    pub fn tasks_of(&self, service: &ServiceId) -> u32 {
        self.by_service.get(service).copied().unwrap_or_default()
    }

    /// Recent failures of tasks made from one version of a service's spec.
    pub fn failures_of(&self, service: &ServiceId, version: u64) -> u32 {
        self.failures.get(&(service, version)).copied().unwrap_or_default()
    }

    /// Adds a task that was just placed here; returns the generic resources that it gets.
    pub fn take(&mut self, needs: &Needs<'a>) -> Vec<GenericResource> {
        self.hold(needs);
        let generic = self.free_generic.choose(&needs.generic);
        self.free_generic.take(&generic);
        self.tasks += 1;
        *self.by_service.entry(needs.service).or_default() += 1;
        generic
    }

    fn hold(&mut self, needs: &Needs<'a>) {
        self.free_nano_cpus = self.free_nano_cpus.saturating_sub(needs.nano_cpus);
        self.free_memory_bytes = self.free_memory_bytes.saturating_sub(needs.memory_bytes);
        self.host_ports.extend(needs.host_ports.iter().copied());
    }
}

/// The usages of all nodes.
#[derive(Debug)]
pub struct NodeUsages<'a>(BTreeMap<&'a NodeId, NodeUsage<'a>>);

impl<'a> NodeUsages<'a> {
    /// The usages in `snapshot`.
    pub fn new(now: Timestamp, snapshot: &'a ClusterSnapshot) -> Self {
        let mut specs: BTreeMap<(&ServiceId, u64), Option<Needs<'a>>> = BTreeMap::new();
        let usages = snapshot.nodes.values().map(|stored| {
            let mut usage = empty(snapshot, &stored.value);
            for task in snapshot.tasks_on(&stored.id) {
                let needs = specs.entry((&task.service_id, task.spec_version)).or_insert_with(|| {
                    snapshot.spec_of(task).map(|spec| Needs::new(snapshot, &task.service_id, spec))
                });
                count(now, snapshot, &task.value, needs.as_ref(), &mut usage);
            }
            (&stored.value.id, usage)
        });
        Self(usages.collect())
    }

    /// One node's usage.
    pub fn of(&mut self, node: &NodeId) -> Option<&mut NodeUsage<'a>> {
        self.0.get_mut(node)
    }

    /// All usages, by node id.
    pub fn iter(&self) -> impl Iterator<Item = &NodeUsage<'a>> {
        self.0.values()
    }
}

fn empty<'a>(snapshot: &'a ClusterSnapshot, node: &'a Node) -> NodeUsage<'a> {
    NodeUsage {
        node,
        host_networks: snapshot.host_networks.get(&node.id).map_or(&[], |stored| &stored.value),
        takes_tasks: node.spec.availability == Availability::Active
            && snapshot.node_state(&node.id) == NodeState::Ready
            && node.description.unfit.is_empty(),
        free_nano_cpus: node.description.nano_cpus,
        free_memory_bytes: node.description.memory_bytes,
        free_generic: Free::all(&node.description.generic_resources),
        host_ports: BTreeSet::new(),
        tasks: 0,
        by_service: BTreeMap::new(),
        failures: BTreeMap::new(),
    }
}

fn count<'a>(
    now: Timestamp,
    snapshot: &ClusterSnapshot,
    task: &'a Task,
    needs: Option<&Needs<'a>>,
    usage: &mut NodeUsage<'a>,
) {
    let status = snapshot.status_of(task);
    if status.state.is_terminal() {
        let failed = matches!(status.state, TaskState::Failed | TaskState::Rejected);
        if failed && now.signed_duration_since(snapshot.ended_at(task)) < FAILURE_MEMORY {
            *usage.failures.entry((&task.service_id, task.spec_version)).or_default() += 1;
        }
        return;
    }
    usage.free_generic.take(&task.generic_resources);
    if let Some(needs) = needs {
        usage.hold(needs);
    }
    if slots::is_wanted(task) {
        usage.tasks += 1;
        *usage.by_service.entry(&task.service_id).or_default() += 1;
    }
}
