//! The nouns of mesh, where they are stored, and the wire between control and agents.
//!
//! Purpose: one vocabulary for the control plane and the agents. [`spec`] is what a user asked for,
//! [`service`], [`task`] and [`node`] what mesh made of it, [`keys`] the only place where etcd
//! paths exist, [`store`] the only door to etcd, [`proto`] the messages between a manager and a
//! node.
//!
//! Invariants: a spec is written by its user alone and loses no field on a round trip; an observed
//! state only rises.
//!
//! Left to others: every decision. Nothing here schedules, selects or restarts.

pub mod ids;
pub mod spec;

pub mod attachment;
pub mod cluster;
pub mod dependency;
pub mod lb;
pub mod log_ask;
pub mod member_keys;
pub mod network;
pub mod node;
pub mod report;
pub mod service;
pub mod task;
pub mod template;

pub mod codec;
pub mod keys;
pub mod store;

pub mod proto;

pub mod api_paths;
pub mod origin;

pub mod renewal;

#[cfg(feature = "fixtures")]
pub mod fixtures;

/// A moment, in UTC. Pure code takes it as an argument and never reads a clock.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
