//! mesh-agent: the part of mesh that runs on every node.
//!
//! Purpose: runs what the control plane assigns to this node, and carries the traffic of published
//! ports to the tasks, by kernel programs and by a userspace proxy.
//!
//! Invariants: the newest mesh table and assignments are on the agent's disk, so it works on
//! without any manager; each state has one writer, and the other components follow it through
//! `watch` channels.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "module docs are a map of the source, so they name private modules too"
)]

pub mod admin;
pub mod app;
pub mod check;
pub mod cli;
mod codes;
pub mod config;
pub mod control_link;
pub mod datapath;
pub mod docker_api;
pub mod encryption;
pub mod enrolment;
mod instance;
pub mod lb;
pub mod metrics;
pub mod names;
pub mod proxy;
mod sock_diag;
pub mod task;
pub mod uninstall;
pub mod view;
