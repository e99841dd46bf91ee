//! Requests from the lab's client, as a user of a published port sends them.
//!
//! Purpose: the demo and the cluster tests send requests and load to services as a client does,
//! from the client's namespace: each request on a connection of its own ([`load`]), many on one
//! ([`keep_alive`]), long answers ([`downloads`]). [`unix`] asks the sockets of a node.
//!
//! Left to others: checking the answers.

pub mod downloads;
pub mod forged;
pub mod held;
pub mod http;
pub mod keep_alive;
pub mod load;
pub mod unix;
