//! Requests from the lab's client: what a user of a published port sees.
//!
//! Purpose: the demo and the cluster tests ask and load services the way a client does, from the
//! client's namespace, each request on a connection of its own.
//!
//! Left to others: what an answer should say.

pub mod forged;
pub mod http;
pub mod load;
