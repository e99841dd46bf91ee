//! The error of a task that finds no node, in Swarm's words.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

/// The filter that refused a node. The order is that of the filters: the first one that refuses
/// counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// The node is not ready, or accepts no tasks.
    Ready,
    /// Too little CPU or memory is free.
    Resources,
    /// A volume or log driver is missing.
    Plugin,
    /// The node's agent is too old to attach tasks to networks.
    OldAgent,
    /// The node has no kernel programs, which carry the packets of networks.
    NoPrograms,
    /// The node's host has addresses of one of the task's networks.
    HostOverlap,
    /// The node can't encrypt packets of networks that are to be encrypted.
    NoEncryption,
    /// A constraint does not hold.
    Constraints,
    /// The image has no build for the node.
    Platform,
    /// A host-mode port is taken.
    HostPort,
    /// The node already runs as many tasks of the service as it may.
    MaxReplicas,
}

impl Refusal {
    fn explain(self, nodes: usize) -> String {
        let plural = if nodes == 1 { "node" } else { "nodes" };
        match self {
            Self::Ready => format!("{nodes} {plural} not available for new tasks"),
            Self::Resources => format!("insufficient resources on {nodes} {plural}"),
            Self::Plugin => format!("missing plugin on {nodes} {plural}"),
            Self::OldAgent => format!("agent too old for overlay networks on {nodes} {plural}"),
            Self::NoPrograms => format!("no kernel programs for overlay networks on {nodes} {plural}"),
            Self::HostOverlap => format!("networks of the host overlap with the task's on {nodes} {plural}"),
            Self::NoEncryption => format!("no encryption of overlay networks on {nodes} {plural}"),
            Self::Constraints => format!("scheduling constraints not satisfied on {nodes} {plural}"),
            Self::Platform => format!("unsupported platform on {nodes} {plural}"),
            Self::HostPort => format!("host-mode port already in use on {nodes} {plural}"),
            Self::MaxReplicas => "max replicas per node limit exceed".to_owned(),
        }
    }
}

/// The number of nodes that each filter refused. Its `Display` is the error of the waiting task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusals(BTreeMap<Refusal, usize>);

impl Refusals {
    /// Counts one node.
    pub fn add(&mut self, refusal: Refusal) {
        *self.0.entry(refusal).or_default() += 1;
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no suitable node");
        }
        let mut counted: Vec<_> = self.0.iter().collect();
        // Most nodes first; of equal counts, in the filters' order.
        counted.sort_by_key(|(_, nodes)| Reverse(**nodes));
        let parts: Vec<_> = counted.into_iter().map(|(refusal, nodes)| refusal.explain(*nodes)).collect();
        write!(f, "no suitable node ({})", parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_in_swarm() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.to_string(), "no suitable node");
        refusals.add(Refusal::Resources);
        assert_eq!(refusals.to_string(), "no suitable node (insufficient resources on 1 node)");
        refusals.add(Refusal::Constraints);
        refusals.add(Refusal::Constraints);
        assert_eq!(
            refusals.to_string(),
            "no suitable node (scheduling constraints not satisfied on 2 nodes; insufficient resources on 1 node)"
        );
    }
}
