//! The planners in the order in which the leader's driver runs them.
//!
//! Invariants: a planner is pure; it sees the writes of the planners before it only once they are committed and in the snapshot; planning
//! on a plan's result plans nothing, but for an update whose next step is at hand. Each writes what it owns and takes no decision for
//! another.
//!
//! Left to others: committing ([`crate::plan`] says how) and waking.

pub mod enforcer;
pub mod global;
pub mod jobs;
pub mod liveness;
pub mod member_keys;
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
    /// The decision. Randomness serves new ids and nothing else.
    pub plan: fn(Timestamp, &ClusterSnapshot, &mut dyn RngCore) -> Plan,
}

/// All planners. The order saves passes (what dies is replaced, then placed); any order converges.
pub const ORDER: &[Planner] = &[
    Planner { name: "subnets", plan: subnets::plan },
    Planner { name: "liveness", plan: liveness::plan },
    Planner { name: "member_keys", plan: member_keys::plan },
    Planner { name: "enforcer", plan: enforcer::plan },
    Planner { name: "restart", plan: restart::plan },
    Planner { name: "replicated", plan: replicated::plan },
    Planner { name: "global", plan: global::plan },
    Planner { name: "jobs", plan: jobs::plan },
    Planner { name: "updater", plan: updater::plan },
    Planner { name: "promote", plan: promote::plan },
    Planner { name: "scheduler", plan: scheduler::plan },
    Planner { name: "reaper", plan: reaper::plan },
    Planner { name: "release", plan: release::plan },
];

#[cfg(test)]
mod tests;
