//! The objects of mesh, their place in the store, and the protocol between managers and agents.
//!
//! Purpose: one vocabulary for the control plane and the agents. [`spec`] is the user's intent,
//! [`service`], [`task`] and [`node`] are the objects that mesh keeps for it, [`keys`] is the only
//! place where etcd paths exist, [`store`] the only access to etcd, [`proto`] the messages between
//! a manager and a node.
//!
//! Invariants: only its user writes a spec, and no field is lost on a round trip; an observed state
//! only rises.
//!
//! Left to others: every decision. Nothing here schedules, selects or restarts.

pub mod ids;
pub mod spec;

pub mod attachment;
pub mod ca;
pub mod cluster;
pub mod dependency;
pub mod lb;
pub mod log_ask;
pub mod member_keys;
pub mod network;
pub mod node;
pub mod remote_client;
pub mod report;
pub mod service;
pub mod shared;
pub mod task;
pub mod template;

pub mod codec;
pub mod go_json;
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
