//! What this manager tells Prometheus, one family of metrics a file, names and labels as in the
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
