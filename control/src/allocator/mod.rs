//! What the cluster gives out: subnets to nodes, ids to backends, published ports to services.
//!
//! Invariants: nothing is given twice at a time; a backend id that was given up comes round again only after all others.
//!
//! Left to others: claiming ports in the store (the API, and the updater for a rollback) and writing tasks (the orchestrators).

pub mod backend_ids;
pub mod ports;
pub mod subnets;
