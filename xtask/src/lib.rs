//! The developer commands of mesh as a library, so that the demo and the cluster tests drive the same lab that
//! `cargo xtask lab` does.
//!
//! Code map: [`setup`] puts the machine in order, [`artifacts`] builds the binaries, [`lab`] makes a whole cluster out of
//! network namespaces, [`lint`] and [`tidy`] look at the sources, [`test`] runs everything that a checkout must pass.
//! [`client`] and [`cluster`] look at a running lab from outside, [`demo`] tells its story, [`swarm_diff`] holds it against a real Swarm, [`bench`] measures, [`soak`] holds out, [`fuzz`] looks for bad packets. [`command`] starts other
//! programs; [`workspace`] knows where things lie.

pub mod artifacts;
pub mod bench;
pub mod client;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod fuzz;
pub mod lab;
pub mod lint;
pub mod setup;
pub mod soak;
pub mod swarm_diff;
pub mod test;
pub mod tidy;
pub mod workspace;
