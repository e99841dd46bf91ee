//! Commands in packages of their own, below `xtask/`: each is built on request, and run as a
//! process.
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
    /// The lab, the demo and the soaks; builds the lab's binaries.
    Lab,
    /// The differential suite.
    SwarmDiff,
    /// The benchmarks: `cargo xtask bench`.
    Bench,
}

impl Nested {
    /// The name of its program.
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
    /// It can't be built, or doesn't exit with 0.
    pub fn run<I, S>(self, args: I) -> Result<()>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Program::new(self.build()?).args(args).run_shown()
    }

    /// Builds the program and replaces this process with it: its exit code is ours, and signals
    /// reach it.
    ///
    /// # Errors
    /// It can't be built or started; otherwise this doesn't return.
    pub fn exec<I, S>(self, args: I) -> Result<()>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Err(Program::new(self.build()?).args(args).exec())
    }

    /// Builds with the features of the whole workspace, as the test run does: for this package
    /// alone, cargo would build every dependency again with other features.
    fn build(self) -> Result<PathBuf> {
        Program::cargo()
            .args(["build", "--quiet", "--workspace", "--bin", self.name()])
            .current_dir(workspace::root())
            .run_shown()?;
        Ok(workspace::target_dir().join("debug").join(self.name()))
    }
}
