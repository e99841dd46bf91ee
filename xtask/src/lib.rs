//! The developer commands of mesh.
//!
//! Code map: [`lint`] and [`tidy`] check the sources, [`mod@test`] runs everything that a checkout
//! must pass, [`kernels`] runs a part of it on Debian's kernels, [`fuzz`] looks for packets that
//! break the pipeline, [`dist`] makes Debian packages.
//! [`nested`] builds and starts the larger commands: `mesh-lab` (build, lab, demo, soak),
//! `mesh-swarm-diff` and `mesh-bench`. What all of them share is in `mesh-checkout`.

pub mod dist;
pub mod fuzz;
pub mod kernels;
pub mod lint;
pub mod nested;
pub mod test;
pub mod tidy;
