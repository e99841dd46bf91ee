//! mesh-control: the control plane.
//!
//! Purpose: keep all state in etcd, decide what runs where, serve Docker's swarm API and the nodes'
//! sessions.
//!
//! Invariants: every decision is a pure function of a [`feed::snapshot::ClusterSnapshot`] and a
//! moment, and results in a [`plan::Plan`]; only the leader's driver commits plans, fenced by its
//! leadership; no state exists outside etcd.
//!
//! Left to others: packets and containers (mesh-agent).

pub mod api;

pub mod feed;

pub mod plan;
pub mod planners;
pub mod slots;

pub mod leader;

pub mod at_rest;
pub mod backup_schedule;
pub mod bootstrap;
pub mod ca;
pub mod seal;
pub mod trust;
pub mod vault;

pub mod context;
mod docker_json;
pub mod dump;
pub mod founding;
pub mod handover;
pub mod logs;
pub mod managed_etcd;
pub mod node_service;
pub mod orders;
pub mod own_node;
pub mod pool;
pub mod remote_api;

pub mod metrics;
pub mod own_store;
pub mod raised_store;
pub mod refill;
mod waiting;

pub mod app;
pub mod cli;
pub mod config;
pub mod diagnosis;
pub mod doors;

#[cfg(test)]
mod fixtures;
