//! `cargo xtask demo`: makes a cluster on this machine and demonstrates the life of a service, step
//! by step.
//!
//! Invariant: every printed claim was checked; the first step that fails ends the demo with an
//! error, and keeps the lab for inspection.

use std::time::Instant;

use anyhow::{Context, Result};
use mesh_checkout::setup;

use crate::artifacts::{self, Binaries};
use crate::cluster::Cluster;
use crate::layout::Layout;
use crate::{Datapath, Lab, UpOptions};

mod acts;
mod mend;
mod told;

/// The demo's own lab, so that it doesn't disturb one in use.
const LAB: &str = "demo";

/// Builds, makes the lab, runs the steps, and removes the lab.
///
/// # Errors
/// The first step that failed; the lab is kept for inspection then.
pub fn run(datapath: Datapath) -> Result<()> {
    let begun = Instant::now();
    setup::ensure()?;
    told::step("Build mesh-agent with its kernel programs, mesh-control, and the operator's command");
    let binaries = artifacts::build()?;
    told::seen(&format!("done after {:.0} s", begun.elapsed().as_secs_f64()));
    told::step(
        "A cluster of three nodes: an engine, an agent and kernel programs each; etcd and mesh-control on the first",
    );
    let layout = Layout::new(LAB.parse()?);
    Lab::up(&layout, &UpOptions::usual(datapath), &binaries).context("make the lab")?;
    let story = Cluster::open(layout.clone()).and_then(|cluster| tell(&cluster, &binaries));
    if story.is_err() {
        told::seen(&format!("the lab is kept for inspection; then: cargo xtask lab down --name {LAB}"));
        return story;
    }
    told::step("Remove the lab");
    Lab::down(&layout).context("remove the lab")?;
    told::step(&format!("Every step succeeded. {:.0} s in all", begun.elapsed().as_secs_f64()));
    Ok(())
}

fn tell(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    acts::nodes(cluster).context("list the nodes")?;
    acts::publish(cluster).context("publish a service")?;
    acts::ask_every_node(cluster).context("ask every node")?;
    acts::client_address(cluster).context("find the client's address in the tasks' logs")?;
    acts::scale(cluster).context("scale to four")?;
    mend::kill_a_container(cluster).context("kill a container")?;
    mend::switch_policy(cluster, binaries).context("switch the policy under load")?;
    acts::figures(cluster).context("read the figures")?;
    acts::clean_up(cluster).context("clean up")
}
