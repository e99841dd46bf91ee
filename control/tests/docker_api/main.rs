//! The Docker API over a store in memory: over HTTP, and with the real `docker` CLI as its client.
//!
//! Tasks are played: a loop gives every service the tasks that it asks for and reports them
//! running.

#![expect(clippy::unwrap_used, reason = "what can't be set up fails the test")]

mod cluster;
mod orchestra;

mod cli;
mod http;
mod http_ca;
mod http_dependencies;
mod http_failures;
mod http_fidelity;
mod http_networks;
mod http_nodes;
mod http_streams;
mod http_tasks;
mod mesh_cli;
mod races;
