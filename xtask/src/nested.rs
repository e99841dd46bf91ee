//! Commands that live in packages of their own, below `xtask/`: each is built when it is asked for,
//! and run as a process.
//!
//! Invariant: `xtask` depends on none of these packages, so that `cargo xtask tidy` compiles
//! neither the lab nor aya.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::Result;
use mesh_checkout::command::Program;
use mesh_checkout::workspace;

/// A package below `xtask/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nested {
    /// Builds the lab's binaries; the lab, demo and soaks.
    Lab,
    /// The differential suite.
    SwarmDiff,
    /// Measurements.
    Bench,
}

impl Nested {
    /// Its program.
    fn name(self) -> &'static str {
        match self {
            Self::Lab => "xtask-lab",
            Self::SwarmDiff => "xtask-swarm-diff",
            Self::Bench => "xtask-bench",
        }
    }

    /// Builds the program and runs it to its end, with our terminal as its output.
    ///
    /// # Errors
    /// When it can't be built, or doesn't exit with 0.
    pub fn run<I, S>(self, args: I) -> Result<()>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Program::new(self.build()?).args(args).run_shown()
    }

    /// Builds the program and becomes it: its exit code is ours, and signals reach it.
    ///
    /// # Errors
    /// When it can't be built or started; there is no other return.
    pub fn exec<I, S>(self, args: I) -> Result<()>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Err(Program::new(self.build()?).args(args).exec())
    }

    /// With the features of the whole workspace, as the test run has them: cargo would build every
    /// dependency anew, with other features, for this package alone.
    fn build(self) -> Result<PathBuf> {
        Program::cargo()
            .args(["build", "--quiet", "--workspace", "--bin", self.name()])
            .current_dir(workspace::root())
            .run_shown()?;
        Ok(workspace::target_dir().join("debug").join(self.name()))
    }
}
