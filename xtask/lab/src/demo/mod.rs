//! `cargo xtask demo`: a cluster on this machine and the story of a service, told step by step with
//! what is seen.
//!
//! Invariant: every sentence that is told was looked at; the first step that doesn't hold ends the
//! demo with an error, and leaves the lab up for a look.

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

/// The demo's lab: its own, so that a lab in use stays.
const LAB: &str = "demo";

/// Builds, makes the lab, tells the story, and takes the lab down.
///
/// # Errors
/// The first step that didn't hold. The lab then stays for a look.
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
        told::seen(&format!("the lab stays up for a look; then: cargo xtask lab down --name {LAB}"));
        return story;
    }
    told::step("The lab is taken down");
    Lab::down(&layout).context("take the lab down")?;
    told::step(&format!("Every step held. {:.0} s in all", begun.elapsed().as_secs_f64()));
    Ok(())
}

fn tell(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    acts::nodes(cluster).context("look at the nodes")?;
    acts::publish(cluster).context("publish a service")?;
    acts::ask_every_node(cluster).context("ask every node")?;
    acts::client_address(cluster).context("find the client's address in the tasks' logs")?;
    acts::scale(cluster).context("scale to four")?;
    mend::kill_a_container(cluster).context("kill a container")?;
    mend::switch_policy(cluster, binaries).context("switch the policy under load")?;
    acts::figures(cluster).context("read the figures")?;
    acts::clean_up(cluster).context("clean up")
}
