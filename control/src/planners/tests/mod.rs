//! Tests of all planners together: simulated clusters, and what must hold in them at every step.

mod simulator;

mod addresses;
mod clocks;
mod converge;
mod replicas;
mod restarts;
mod scale;
mod updates;
