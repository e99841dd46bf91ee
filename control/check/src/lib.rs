//! mesh-check: what mesh needs of a node and of its cluster, and how to mend what is amiss.
//!
//! Purpose: one list of findings, each with what was seen and the command that mends it, for `mesh
//! check` and for the start of the agent.
//!
//! Code map: [`collect`] reads facts from the machine, [`rules`] turn facts into findings, [`show`]
//! prints them. `firewall` judges rules of nftables and iptables.
//!
//! Invariants: rules are pure. A fact that can't be read is a skipped finding, never an error: a
//! check must not call a working node broken.
//!
//! Left to others: the calls to the cluster's API (the `mesh` command), and repairs.

pub mod collect;
pub mod facts;
mod finding;
pub mod firewall;
pub mod http;
mod metrics;
mod proc_net;
pub mod rules;
pub mod show;

pub use facts::{ClusterFacts, Expected, HostFacts, NeededPort, OwnEtcd, Scrape, Transport};
pub use finding::{Finding, Severity, errors, warnings};
