//! The two clusters side by side, for whoever wants to measure one against the other.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_checkout::workspace;
use mesh_lab::layout::Layout;

use super::side::Cluster;
use super::{Side, raise};

const LIMIT: Duration = Duration::from_mins(1);
/// Between two looks.
const PAUSE_SHORTEST: Duration = Duration::from_millis(5);
const PAUSE_LONGEST: Duration = Duration::from_millis(100);

/// A cluster of three nodes and the `docker` command towards it. Its lab goes with it.
pub struct Contender {
    /// `swarm` or `mesh`.
    pub name: &'static str,
    cluster: Cluster,
    layout: Layout,
}

/// A real Swarm, then mesh on the same kind of engines, both empty.
///
/// # Errors
/// When a lab can't be brought up.
pub fn contenders() -> Result<[Contender; 2]> {
    let directory: PathBuf = workspace::root().join("tests/swarm-diff");
    let raise = |side: Side| {
        let (cluster, layout) = raise::raise(side, &directory, false)?;
        Ok::<_, anyhow::Error>(Contender { name: side.name(), cluster, layout })
    };
    Ok([raise(Side::Swarm)?, raise(Side::Mesh)?])
}

impl Contender {
    /// Runs a command of the shell, whose `docker` speaks to the first node.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, command: &str) -> Result<()> {
        let outcome = self.cluster.first(command)?;
        ensure!(outcome.code == 0, "{}: `{command}`: {}", self.name, outcome.stderr.trim());
        Ok(())
    }

    /// Waits until `count` tasks of the service run, and no other is under way; notices it within a
    /// twentieth of the time that it took.
    ///
    /// # Errors
    /// When that takes longer than a minute.
    pub fn wait_running(&self, service: &str, count: usize) -> Result<()> {
        let begun = Instant::now();
        while !self.cluster.runs(service, count).with_context(|| self.name)? {
            let waited = begun.elapsed();
            ensure!(waited < LIMIT, "{}: {service} has not come to {count} tasks in {LIMIT:?}", self.name);
            std::thread::sleep((waited / 20).clamp(PAUSE_SHORTEST, PAUSE_LONGEST));
        }
        Ok(())
    }

    /// Removes everything, and waits until no task is there any more.
    ///
    /// # Errors
    /// When something doesn't go.
    pub fn clean(&self) -> Result<()> {
        self.cluster.clean().with_context(|| format!("empty {}", self.name))
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Err(error) = raise::lower(&self.layout) {
            eprintln!("take {} down: {error:#}", self.name);
        }
    }
}
