//! This manager's Prometheus metrics, one family per file, with names and labels as in the
//! project's catalogue.
//!
//! Invariant: every family passes `promtool check metrics`.

pub mod admin;
pub mod api;
pub mod build;
pub mod certificates;
pub mod clocks;
pub mod cluster;
pub mod store;
pub mod targets;
