//! The cluster step: labs on each data path, two at a time, each with the tests for its data path.
//!
//! The tests of a lab run one after the other, because they share it and some break it. They wait
//! most of the time (for health checks, grace periods, leases), so two labs beside each other take
//! little longer than one.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};

use anyhow::{Context, Result, anyhow};
use mesh_checkout::command::Program;
use mesh_checkout::workspace;

use super::{LAB_VAR, TEST_LIMIT, cargo};
use crate::nested::Nested;

/// Cluster tests that don't depend on the data path, and tests of applications: they run in the
/// first lab only.
const CONTROL_PLANE: &[&str] = &[
    "admission",
    "applications",
    "docker_cli",
    "engine_away",
    "etcd_access",
    "interrupted_update",
    "jobs",
    "nodes",
    "secrets",
    "service_flags",
    "service_logs",
    "stacks",
    "templates",
    "update_failures",
];
/// Cluster tests for nodes on different data paths.
const MIXED: &[&str] = &["mixed"];

/// A lab and the tests that run in it.
#[derive(Debug)]
struct LabRun {
    /// The lab's name.
    lab: &'static str,
    /// What the lab is made with.
    options: &'static [&'static str],
    tests: Tests,
}

/// Which of the cluster tests run in a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tests {
    /// All for nodes of one kind.
    All,
    /// Those of them that depend on the data path.
    DataPath,
    /// Those for nodes on different data paths.
    Mixed,
}

/// Two lanes: their labs run at the same time, those of one lane one after the other. The first
/// lane's takes as long as the three of the second.
const LANES: [&[LabRun]; 2] = [
    &[LabRun { lab: "test-tc", options: &["--datapath", "tc"], tests: Tests::All }],
    &[
        LabRun { lab: "test-xdp", options: &["--datapath", "xdp"], tests: Tests::DataPath },
        LabRun { lab: "test-userspace", options: &["--datapath", "userspace"], tests: Tests::DataPath },
        LabRun {
            lab: "test-mixed",
            options: &["--datapath", "tc", "--node-datapath", "node-3=userspace"],
            tests: Tests::Mixed,
        },
    ],
];

/// Runs the cluster tests of these names. The first lane's output is shown at once, that of the
/// second when it has ended.
///
/// # Errors
/// A test failed or a lab can't be made; the lab stays for inspection.
pub(super) fn run(names: &[String]) -> Result<()> {
    build(names)?;
    // One after the other: the first makes the images that all labs use.
    for first in LANES.iter().filter_map(|lane| lane.first()) {
        first.up(None)?;
    }
    let path = workspace::target_dir().join("tmp").join("cluster-second-lane.log");
    fs::create_dir_all(path.parent().context("a path below target")?).context("make target/tmp")?;
    let mut log = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    let (shown, kept) = std::thread::scope(|scope| {
        let second = scope.spawn(|| run_lane(LANES[1], names, Some(&log)));
        let shown = run_lane(LANES[0], names, None);
        (shown, second.join().unwrap_or_else(|_| Err(anyhow!("the second lane panicked"))))
    });
    let mut text = String::new();
    log.rewind().and_then(|()| log.read_to_string(&mut text)).with_context(|| path.display().to_string())?;
    println!("── cluster: the labs beside it\n{text}");
    shown.and(kept)
}

fn run_lane(lane: &[LabRun], names: &[String], log: Option<&File>) -> Result<()> {
    for (number, run) in lane.iter().enumerate() {
        if number > 0 {
            run.up(log)?;
        }
        if let Err(error) = run.test(names, log) {
            println!("the lab stays for inspection: cargo xtask lab --name {} status", run.lab);
            return Err(error.context(format!("lab {}", run.lab)));
        }
        run.command(&["down"], log)?;
    }
    Ok(())
}

/// Builds the tests, which cargo would otherwise do in one lane while the other waits for it.
fn build(names: &[String]) -> Result<()> {
    cargo(&["test", "--quiet", "--no-run", "--workspace", "--features", "mesh-tests/cluster"])
        .args(names.iter().flat_map(|name| ["--test", name]))
        .run_shown_within(TEST_LIMIT)
}

impl LabRun {
    fn up(&self, log: Option<&File>) -> Result<()> {
        self.command(&[&["up"], self.options].concat(), log)
    }

    /// `cargo xtask lab` with these arguments.
    fn command(&self, args: &[&str], log: Option<&File>) -> Result<()> {
        let program = Nested::Lab.program()?.args(["lab", "--name", self.lab]).args(args);
        printing(program, log)?.run_shown()
    }

    fn test(&self, names: &[String], log: Option<&File>) -> Result<()> {
        let tests = names.iter().filter(|name| self.tests.include(name));
        let program = cargo(&["test", "--quiet", "--no-fail-fast", "--workspace"])
            .args(["--features", "mesh-tests/cluster"])
            .args(tests.flat_map(|name| ["--test", name]))
            .args(["--", "--test-threads", "1", "--show-output"])
            .env(LAB_VAR, self.lab);
        printing(program, log)?.run_shown_within(TEST_LIMIT)
    }
}

impl Tests {
    fn include(self, name: &str) -> bool {
        let (is_mixed, is_control) = (MIXED.contains(&name), CONTROL_PLANE.contains(&name));
        match self {
            Self::All => !is_mixed,
            Self::DataPath => !is_mixed && !is_control,
            Self::Mixed => is_mixed,
        }
    }
}

/// The program with its output in `log`, or on our terminal.
fn printing(program: Program, log: Option<&File>) -> Result<Program> {
    match log {
        Some(log) => program.printing_to(log),
        None => Ok(program),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_runs_in_a_lab_and_each_data_path_has_one() {
        let labs = || LANES.iter().flat_map(|lane| lane.iter());
        for name in CONTROL_PLANE.iter().chain(MIXED).chain(&["networks", "ingress"]) {
            assert!(labs().any(|run| run.tests.include(name)), "{name} runs nowhere");
        }
        for datapath in ["tc", "xdp", "userspace"] {
            let with_it = labs().filter(|run| run.options.contains(&datapath));
            assert!(with_it.filter(|run| run.tests.include("ingress")).count() == 1, "ingress on {datapath}");
        }
        let mut names: Vec<&str> = labs().map(|run| run.lab).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), labs().count(), "labs with the same name");
    }
}
