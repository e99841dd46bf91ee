//! The developer commands of mesh as a library, so that the demo and the cluster tests drive the same lab that
//! `cargo xtask lab` does.
//!
//! Code map: [`setup`] puts the machine in order, [`artifacts`] builds the binaries, [`lab`] makes a whole cluster out of
//! network namespaces, [`checks`] runs formatter, linter, house rules and tests. [`client`] and [`cluster`] look at a running
//! lab from outside, [`demo`] tells its story. [`command`] starts other programs; [`workspace`] knows where things lie.

pub mod artifacts;
pub mod client;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod lab;
pub mod setup;
pub mod workspace;
