//! What is right and wrong, from facts alone.

mod cluster;
mod daemons;
mod engine;
mod host;
mod network;

use crate::facts::{ClusterFacts, Expected, HostFacts, Scrape};
use crate::finding::Finding;

/// Judges a node, whether or not mesh runs on it.
pub fn node(facts: &HostFacts, expected: &Expected) -> Vec<Finding> {
    let mut findings = host::kernel(facts, expected);
    findings.extend(host::cgroups(facts));
    findings.extend(engine::engine(facts, expected));
    findings.extend(network::ports(facts, expected));
    findings.extend(network::firewall(facts, expected));
    findings.extend(network::paths(facts));
    findings.extend(network::pools(facts, expected));
    findings.extend(host::clock(facts));
    findings.extend(host::etcd(facts, expected));
    findings
}

/// Judges what this node's agent tells.
pub fn agent(scrape: &Scrape) -> Vec<Finding> {
    daemons::agent(scrape)
}

/// Judges a cluster.
pub fn cluster(facts: &ClusterFacts) -> Vec<Finding> {
    cluster::cluster(facts)
}
