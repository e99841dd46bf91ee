//! What happened to the cluster's objects, as `docker events` tells it.
//!
//! Purpose: every change that the watch on etcd brings becomes an event ([`mod@derive`], pure),
//! kept for a while and told to whoever listens ([`log`]).
//!
//! Invariants: each manager derives the events by itself, from the same changes in the same order;
//! nothing is stored, so a manager knows no event older than itself, and at most [`log::KEPT`] of
//! them: Swarm keeps as many.
//!
//! Left to others: the engine's own events (the agent's socket merges both).

mod derive;
pub mod log;

pub use derive::{Action, EventKind, SwarmEvent};
pub(crate) use derive::{after_listing, of_change};
