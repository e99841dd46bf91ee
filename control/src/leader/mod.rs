//! What the one leading manager does: it runs the planners and commits what they decide.
//!
//! Purpose: [`election`] says whether this manager leads, [`driver`] runs the planners on each new
//! snapshot, [`commit`] turns their plans into transactions, [`compaction`] drops etcd's old
//! revisions, [`metrics`] counts the planners' passes.
//!
//! Invariant: every write of this room compares the leader's key, so that a manager that led before
//! writes nothing.
//!
//! Left to others: what is decided (planners).

pub mod commit;
pub mod compaction;
pub mod driver;
pub mod election;
pub mod metrics;
