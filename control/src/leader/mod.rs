//! The work of the leading manager: it runs the planners and commits their plans.
//!
//! Purpose: [`election`] decides whether this manager leads, [`deposition`] ends the term of a
//! leader whose machine is silent, [`driver`] runs the planners on each
//! new snapshot, [`commit`] turns their plans into transactions, [`compaction`] drops etcd's old
//! revisions, [`etcd_members`] keeps etcd's members in step with the managers, [`metrics`] counts
//! the planners' passes.
//!
//! Invariant: every write of a leader compares the leader's key, so that a former leader writes
//! nothing.
//!
//! Left to others: the decisions (planners).

pub mod commit;
pub mod compaction;
pub mod deposition;
pub mod driver;
pub mod election;
pub mod etcd_members;
pub mod metrics;
