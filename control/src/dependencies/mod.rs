//! Secrets and configs: who refers to them, and their sealed data.
//!
//! Invariants: a service's references are written and taken back with its spec, in one transaction that also demands that what it
//! refers to exists; what is referred to can't be removed. Data is opened only to be sent to a node that needs it, or, of a config, to
//! who asks for it; nothing opened is kept.
//!
//! Left to others: what a client may ask for (`api`), telling nodes (`node_service`).

pub mod references;
pub mod vault;
