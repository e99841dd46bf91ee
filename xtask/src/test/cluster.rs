//! The cluster step: a lab for each data path, each with the tests for its data path.
//!
//! The tests of a lab run one after the other, because they share it and some break it. So do the
//! labs: two at a time leave the CPUs too busy for the tests of floods.

use anyhow::{Context, Result};

use super::{LAB_VAR, TEST_LIMIT, cargo};
use crate::nested::Nested;

/// The name of the labs, of which there is one at a time.
const LAB_NAME: &str = "test";
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
    "why",
];
/// Cluster tests for nodes on different data paths.
const MIXED: &[&str] = &["mixed"];

/// A lab and the tests that run in it.
#[derive(Debug)]
struct LabRun {
    /// What the lab is called in the output.
    datapath: &'static str,
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

/// The labs, in the order in which they are made.
const LABS: [LabRun; 4] = [
    LabRun { datapath: "tc", options: &["--datapath", "tc"], tests: Tests::All },
    LabRun { datapath: "xdp", options: &["--datapath", "xdp"], tests: Tests::DataPath },
    LabRun { datapath: "userspace", options: &["--datapath", "userspace"], tests: Tests::DataPath },
    LabRun {
        datapath: "mixed",
        options: &["--datapath", "tc", "--node-datapath", "node-3=userspace"],
        tests: Tests::Mixed,
    },
];

/// Runs the cluster tests of these names.
///
/// # Errors
/// A test failed or a lab can't be made; the lab stays for inspection.
pub(super) fn run(names: &[String]) -> Result<()> {
    for lab in &LABS {
        println!("── cluster: {}", lab.datapath);
        lab.run(names).with_context(|| format!("datapath {}", lab.datapath))?;
    }
    Ok(())
}

impl LabRun {
    fn run(&self, names: &[String]) -> Result<()> {
        Nested::Lab.run(["lab", "--name", LAB_NAME, "up"].iter().chain(self.options))?;
        if let Err(error) = self.test(names) {
            println!("the lab stays for inspection: cargo xtask lab --name {LAB_NAME} status");
            return Err(error);
        }
        Nested::Lab.run(["lab", "--name", LAB_NAME, "down"])
    }

    fn test(&self, names: &[String]) -> Result<()> {
        let tests = names.iter().filter(|name| self.tests.include(name));
        cargo(&["test", "--quiet", "--no-fail-fast", "--workspace", "--features", "mesh-tests/cluster"])
            .args(tests.flat_map(|name| ["--test", name]))
            .args(["--", "--test-threads", "1", "--show-output"])
            .env(LAB_VAR, LAB_NAME)
            .run_shown_within(TEST_LIMIT)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_runs_in_a_lab_and_each_data_path_has_one() {
        let labs = || LABS.iter();
        for name in CONTROL_PLANE.iter().chain(MIXED).chain(&["networks", "ingress"]) {
            assert!(labs().any(|run| run.tests.include(name)), "{name} runs nowhere");
        }
        for datapath in ["tc", "xdp", "userspace"] {
            let with_it = labs().filter(|run| run.options.contains(&datapath));
            assert!(with_it.filter(|run| run.tests.include("ingress")).count() == 1, "ingress on {datapath}");
        }
    }
}
