//! Events of the cluster's objects, for `docker events`.
//!
//! Purpose: every change that the watch on etcd brings becomes an event ([`mod@derive`], pure),
//! which is kept for a while and sent to the listeners ([`log`]).
//!
//! Invariants: each manager derives the events by itself, from the same changes in the same order;
//! nothing is stored, so a manager has no event older than itself, and at most [`log::KEPT`] of
//! them: Swarm keeps as many.
//!
//! Left to others: the engine's own events (the agent's socket merges both).

mod derive;
pub mod log;

pub use derive::{Action, EventKind, SwarmEvent};
pub(crate) use derive::{after_listing, of_change};
