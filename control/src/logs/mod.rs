//! `docker service logs`: what tasks wrote, read from the nodes that have it.
//!
//! Purpose: one [`reader`] a client asks the nodes that hold the wanted tasks ([`selection`],
//! pure), through the [`broker`] that sessions and the nodes' streams look into, and hands on
//! frames ([`frame`], pure) as they come.
//!
//! Invariants: nothing is stored; every queue is bounded, so that a client that reads slowly slows
//! the nodes' reading, and a client that goes away ends it; a node that can't be asked makes the
//! answer partial and says so, it never makes it hang; only lines of tasks that a node was asked
//! for are taken from it.
//!
//! Left to others: reading containers' logs (the agent), Docker's parameters (`api`).

pub mod broker;
pub(crate) mod forward;
pub(crate) mod frame;
pub(crate) mod reader;
pub(crate) mod selection;
