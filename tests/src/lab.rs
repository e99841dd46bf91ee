//! Breaks and mends parts of the lab, as the developer commands do.

use anyhow::{Result, ensure};
use mesh_lab::artifacts::Binaries;
use mesh_lab::cluster::{Cluster, eventually};
use mesh_lab::{Application, Lab, Part};

use crate::PATIENCE;

/// Kills a part of a node, as `cargo xtask lab kill` does.
///
/// # Errors
/// It can't be killed.
pub fn kill(cluster: &Cluster, node: &str, part: Part) -> Result<()> {
    Lab::open(&cluster.layout)?.kill(node, part)
}

/// Starts a part of a node and waits until it is ready, as `cargo xtask lab start` does.
///
/// # Errors
/// It doesn't become ready.
pub fn start(cluster: &Cluster, node: &str, part: Part) -> Result<()> {
    Lab::open(&cluster.layout)?.start(node, part, &Binaries::expected())
}

/// Makes an application's image and loads it into these nodes' engines.
///
/// # Errors
/// An engine refuses it.
pub fn give(cluster: &Cluster, application: Application, nodes: &[&str]) -> Result<()> {
    Lab::open(&cluster.layout)?.give(application, nodes)
}

/// The output of a command that runs on a node's machine, in its view of the file system.
///
/// # Errors
/// The command fails.
pub fn on_machine(cluster: &Cluster, node: &str, words: &[&str]) -> Result<String> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let output = Lab::open(&cluster.layout)?.command(node, &words)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?} on {node}: {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A node without power, or without a part of it; dropping this restores it.
#[derive(Debug)]
pub struct PowerCut {
    node: String,
    part: Part,
    cluster: Cluster,
    restored: bool,
}

impl PowerCut {
    /// Cuts the power of `node`.
    ///
    /// # Errors
    /// The lab command fails.
    pub fn of(cluster: &Cluster, node: &str) -> Result<Self> {
        Self::of_part(cluster, node, Part::All)
    }

    /// Kills a part of `node`.
    ///
    /// # Errors
    /// The lab command fails.
    pub fn of_part(cluster: &Cluster, node: &str, part: Part) -> Result<Self> {
        let cut = Self { node: node.to_owned(), part, cluster: cluster.clone(), restored: false };
        kill(cluster, node, part)?;
        Ok(cut)
    }

    /// Restores the power and waits until the node is Ready.
    ///
    /// # Errors
    /// It doesn't come back.
    pub fn restore(mut self, cluster: &Cluster) -> Result<()> {
        self.restored = true;
        start(cluster, &self.node, self.part)?;
        eventually(&format!("{} to be Ready", self.node), PATIENCE, || {
            let rows = cluster.docker()?.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
            ensure!(rows.lines().any(|row| row == format!("{} Ready", self.node)), "nodes: {rows}");
            Ok(())
        })
    }
}

impl Drop for PowerCut {
    fn drop(&mut self) {
        if !self.restored
            && let Err(error) = start(&self.cluster, &self.node, self.part)
        {
            eprintln!("can't restore the power of {}: {error:#}", self.node);
        }
    }
}
