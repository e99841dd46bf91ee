//! The planners, in the order in which the leader's driver runs them.
//!
//! Each planner is one file, named as the planner is in logs and metrics. It takes a moment, a
//! snapshot and a source of ids, and returns a [`Plan`]: writes with the revisions that they depend
//! on, their reasons, and a moment at which time alone may change the plan. What more than one
//! planner needs is in [`crate::slots`]; no planner calls another, so each can be read, tested and
//! replaced alone. They communicate through the store only.
//!
//! Why small planners and not one: each owns one kind of decision, and one file explains a
//! decision. The price is that a change takes several passes (a node goes down, its tasks are
//! replaced, the new tasks are placed). A pass takes milliseconds, and each commit wakes the next
//! one.
//!
//! A planner sees the writes of the planners before it only once they are committed and in the
//! snapshot. It may plan on a snapshot that is behind; then the compares of its plan fail, nothing
//! is written, and it plans again on the newer one.
//!
//! Invariants: a planner is pure (`cargo xtask tidy` refuses clocks and I/O here); planning on a
//! plan's result plans nothing, except for an update whose next step is at hand. Each writes what
//! it owns and decides nothing for another.
//!
//! Left to others: committing ([`crate::plan`] says how) and waking.

pub mod addresses;
pub mod ca_rotation;
pub mod enforcer;
pub mod global;
pub mod jobs;
pub mod liveness;
pub mod member_keys;
pub mod networks;
pub mod promote;
pub mod reaper;
pub mod release;
pub mod replicated;
pub mod restart;
pub mod scheduler;
pub mod subnets;
pub mod updater;

use mesh_state::Timestamp;
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::Plan;

/// One planner.
#[derive(Debug, Clone, Copy)]
pub struct Planner {
    /// Its name in logs and metrics.
    pub name: &'static str,
    /// Makes the plan. Randomness serves new ids and nothing else.
    pub plan: fn(Timestamp, &ClusterSnapshot, &mut dyn RngCore) -> Plan,
}

/// All planners. The order saves passes (a dead task is replaced, then placed); any order
/// converges.
pub const ORDER: &[Planner] = &[
    Planner { name: "subnets", plan: subnets::plan },
    Planner { name: "networks", plan: networks::plan },
    Planner { name: "liveness", plan: liveness::plan },
    Planner { name: "member_keys", plan: member_keys::plan },
    Planner { name: "ca_rotation", plan: ca_rotation::plan },
    Planner { name: "enforcer", plan: enforcer::plan },
    Planner { name: "restart", plan: restart::plan },
    Planner { name: "replicated", plan: replicated::plan },
    Planner { name: "global", plan: global::plan },
    Planner { name: "jobs", plan: jobs::plan },
    Planner { name: "updater", plan: updater::plan },
    Planner { name: "promote", plan: promote::plan },
    Planner { name: "scheduler", plan: scheduler::plan },
    Planner { name: "addresses", plan: addresses::plan },
    Planner { name: "reaper", plan: reaper::plan },
    Planner { name: "release", plan: release::plan },
];

#[cfg(test)]
mod tests;
