//! The two clusters side by side, for benchmarks that compare them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_checkout::workspace;
use mesh_lab::layout::Layout;

use super::side::Cluster;
use super::{Side, raise};

const LIMIT: Duration = Duration::from_mins(1);
/// The shortest pause between two polls.
const PAUSE_SHORTEST: Duration = Duration::from_millis(5);
const PAUSE_LONGEST: Duration = Duration::from_millis(100);

/// A cluster of three nodes with the `docker` command for it. Dropping it removes its lab.
pub struct Contender {
    /// `swarm` or `mesh`.
    pub name: &'static str,
    cluster: Cluster,
    layout: Layout,
}

/// A real Swarm and mesh, on the same kind of engines, both empty.
///
/// # Errors
/// A lab can't be started.
pub fn contenders() -> Result<[Contender; 2]> {
    let directory: PathBuf = workspace::root().join("tests/swarm-diff");
    let raise = |side: Side| {
        let (cluster, layout) = raise::raise(side, &directory, false)?;
        Ok::<_, anyhow::Error>(Contender { name: side.name(), cluster, layout })
    };
    Ok([raise(Side::Swarm)?, raise(Side::Mesh)?])
}

impl Contender {
    /// Runs a shell command whose `docker` uses the first node.
    ///
    /// # Errors
    /// The command fails.
    pub fn run(&self, command: &str) -> Result<()> {
        let outcome = self.cluster.first(command)?;
        ensure!(outcome.code == 0, "{}: `{command}`: {}", self.name, outcome.stderr.trim());
        Ok(())
    }

    /// Waits until `count` tasks of the service run, and no other is starting; its polls delay the
    /// result by a twentieth of the elapsed time at most.
    ///
    /// # Errors
    /// It takes longer than a minute.
    pub fn wait_running(&self, service: &str, count: usize) -> Result<()> {
        let begun = Instant::now();
        while !self.cluster.runs(service, count).with_context(|| self.name)? {
            let waited = begun.elapsed();
            ensure!(waited < LIMIT, "{}: {service} did not reach {count} tasks within {LIMIT:?}", self.name);
            std::thread::sleep((waited / 20).clamp(PAUSE_SHORTEST, PAUSE_LONGEST));
        }
        Ok(())
    }

    /// Removes everything, and waits until no task is left.
    ///
    /// # Errors
    /// Something can't be removed.
    pub fn clean(&self) -> Result<()> {
        self.cluster.clean().with_context(|| format!("empty {}", self.name))
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Err(error) = raise::lower(&self.layout) {
            eprintln!("can't remove {}: {error:#}", self.name);
        }
    }
}
