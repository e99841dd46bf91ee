//! mesh-agent: the node's half of mesh.
//!
//! Purpose: run what the control plane assigns to this node and carry the traffic of published ports to the tasks, by kernel
//! programs and by a userspace proxy.
//!
//! Invariants: whatever the agent was last told is on its disk, so it works on without any manager; only one part writes each
//! state, and the others follow it through `watch` channels.

pub mod admin;
pub mod app;
pub mod cli;
mod codes;
pub mod config;
pub mod control_link;
pub mod datapath;
pub mod docker_api;
pub mod lb;
pub mod metrics;
pub mod proxy;
pub mod task;
pub mod uninstall;
pub mod view;
