//! The state of the cluster, read from etcd.
//!
//! Purpose: [`watch`] follows etcd and turns every change into the next [`snapshot`] and into
//! [`events`] for `docker events`; [`clocks`] measures how far the clocks of nodes and managers are
//! from this manager's.
//!
//! Invariants: the feed only reads; a published snapshot never changes, and holds nothing that etcd
//! doesn't.
//!
//! Left to others: deciding on a snapshot (planners), and writing (leader, API, node service).

pub mod clocks;
pub mod events;
pub mod snapshot;
pub mod watch;
