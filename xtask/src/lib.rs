//! The developer commands of mesh.
//!
//! Code map: [`lint`] and [`tidy`] check the sources, [`mod@test`] runs everything that a checkout
//! must pass, [`fuzz`] looks for packets that break the pipeline, [`dist`] makes Debian packages.
//! [`nested`] builds and starts the larger commands: `mesh-lab` (build, lab, demo, soak),
//! `mesh-swarm-diff` and `mesh-bench`. What all of them share is in `mesh-checkout`.

pub mod dist;
pub mod fuzz;
pub mod lint;
pub mod nested;
pub mod test;
pub mod tidy;
