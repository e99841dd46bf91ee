//! `docker service logs`: reads the output of tasks from the nodes that hold it.
//!
//! Purpose: one [`reader`] per client asks the nodes that hold the wanted tasks ([`selection`],
//! pure), through the [`broker`] that sessions and the nodes' streams use, and passes frames on
//! ([`frame`], pure) as they come.
//!
//! Invariants: nothing is stored; every queue is bounded, so that a slow client slows the nodes'
//! reading (backpressure), and a client that goes away ends it; a node that can't be asked makes
//! the answer partial, with a notice, and never makes it hang; only lines of tasks that a node was
//! asked for are accepted from it.
//!
//! Left to others: reading containers' logs (the agent), Docker's parameters (`api`).

pub mod broker;
pub(crate) mod forward;
pub(crate) mod frame;
pub(crate) mod reader;
pub(crate) mod selection;
