//! `cargo xtask test`: everything that a clean checkout must pass, the quickest first, with a
//! summary of times.
//!
//! Cluster tests find their lab by its name in the environment ([`LAB_VAR`]); each datapath gets a
//! lab of its own ([`cluster`]).

mod cluster;

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use mesh_checkout::command::Program;
use mesh_checkout::{setup, workspace};
use serde::Deserialize;

use crate::nested::Nested;
use crate::{dist, kernels, lint, tidy};

/// The environment variable with the name of the cluster tests' lab.
pub const LAB_VAR: &str = "MESH_LAB";

/// The limit of one run of cargo's tests, builds included: far more than any needs, far less than a
/// CI job waits.
const TEST_LIMIT: Duration = Duration::from_mins(35);

/// Arguments of `cargo xtask test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only these steps, instead of all but swarm-diff
    #[arg(value_enum)]
    steps: Vec<GateStep>,
}

/// A step of the test run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GateStep {
    /// rustfmt
    Format,
    /// The house rules
    Tidy,
    /// clippy, cargo-deny and rustdoc
    Clippy,
    /// Tests beside the code
    Unit,
    /// Tests of a crate's interface, some on a real etcd
    Integration,
    /// The Debian packages, made from the tests' binaries; as root, also their installation on a
    /// machine with systemd
    Packages,
    /// Kernel programs (needs root)
    Kernel,
    /// Kernel programs on Debian's kernels 6.1 and 6.12, in virtual machines
    Kernels,
    /// The lab, without mesh (needs root)
    Lab,
    /// Whole clusters: on the tc datapath, on xdp, in userspace, and mixed (needs root)
    Cluster,
    /// The docker commands of tests/swarm-diff against a real Swarm and against mesh (needs root;
    /// only if named)
    SwarmDiff,
}

/// The result of a step.
enum Outcome {
    Passed,
    /// It couldn't run, for this reason.
    Skipped(&'static str),
}

/// Runs the steps until one fails; always prints which steps ran, and for how long.
///
/// # Errors
/// The error of the failed step.
pub fn run(args: &TestArgs) -> Result<()> {
    setup::ensure()?;
    let all =
        || GateStep::value_variants().iter().copied().filter(|step| *step != GateStep::SwarmDiff).collect();
    let steps: Vec<GateStep> = if args.steps.is_empty() { all() } else { args.steps.clone() };
    let mut summary = Vec::new();
    let mut failed = None;
    for step in steps {
        let name = step.name();
        println!("── {name}");
        let begun = Instant::now();
        let result = step.run();
        let word = match &result {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::Skipped(why)) => format!("NOT RUN: {why}"),
            Err(_) => "FAILED".to_owned(),
        };
        summary.push(line(&name, &word, begun.elapsed()));
        if let Err(error) = result {
            failed = Some(error.context(format!("step {name}; next: cargo xtask test {name}")));
            break;
        }
    }
    println!("\n{}", summary.join("\n"));
    failed.map_or(Ok(()), Err)
}

fn line(name: &str, word: &str, time: Duration) -> String {
    format!("{name:<12} {:>7.1} s  {word}", time.as_secs_f64())
}

impl GateStep {
    fn run(self) -> Result<Outcome> {
        if self.needs_root() && !rustix::process::geteuid().is_root() {
            if env::var_os("CI").is_some() {
                bail!("needs root, and CI must not leave it out");
            }
            return Ok(Outcome::Skipped("needs root"));
        }
        match self {
            Self::Format => lint::format()?,
            Self::Tidy => tidy::check()?,
            Self::Clippy => {
                lint::dependencies()?;
                lint::clippy()?;
                lint::documentation()?;
            }
            Self::Unit => {
                cargo_test(&["--lib", "--bins"])?;
                cargo_test(&["--doc"])?;
            }
            Self::Integration => interface_tests(|package| !ROOTS_TESTS.contains(&package))?,
            Self::Packages => return packages(),
            Self::Kernel => interface_tests(|package| package == "mesh-agent")?,
            Self::Kernels => kernels::check()?,
            Self::Lab => interface_tests(|package| LAB_TESTS.contains(&package))?,
            Self::Cluster => cluster::run(&test_targets(|package| package == "mesh-tests")?)?,
            Self::SwarmDiff => Nested::SwarmDiff.run(["swarm-diff"])?,
        }
        Ok(Outcome::Passed)
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Kernel | Self::Lab | Self::Cluster | Self::SwarmDiff)
    }

    /// The step's name on the command line.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Makes the packages and, as root, installs them on a machine with systemd.
fn packages() -> Result<Outcome> {
    dist::make(dist::Profile::Dev)?;
    if !rustix::process::geteuid().is_root() {
        return Ok(Outcome::Skipped("made; root would also install them"));
    }
    Nested::Lab.run(["soak", "install", "--nodes", "1"])?;
    Ok(Outcome::Passed)
}

/// Packages whose tests in `tests/` need root and have a step of their own.
const ROOTS_TESTS: [&str; 4] = ["mesh-agent", "mesh-bench", "mesh-lab", "mesh-tests"];
/// The packages of the lab step.
const LAB_TESTS: [&str; 2] = ["mesh-bench", "mesh-lab"];

/// Runs the tests in `tests/` of the packages that are `wanted`.
fn interface_tests(wanted: impl Fn(&str) -> bool) -> Result<()> {
    let names = test_targets(wanted)?;
    cargo_test(&names.iter().flat_map(|name| ["--test", name.as_str()]).collect::<Vec<_>>())
}

/// Always with the whole workspace, and tests by name: for another selection of packages, cargo
/// would build every dependency again with other features.
fn cargo_test(args: &[&str]) -> Result<()> {
    cargo(&["test", "--quiet", "--workspace"]).args(args).run_shown_within(TEST_LIMIT)
}

fn cargo(args: &[&str]) -> Program {
    Program::cargo().args(args).current_dir(workspace::root())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Names of the tests in `tests/` of the packages that are `wanted`.
fn test_targets(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let text = cargo(&["metadata", "--no-deps", "--format-version", "1"]).output()?;
    let metadata: Metadata = serde_json::from_str(&text).context("parse the output of cargo metadata")?;
    let targets =
        metadata.packages.into_iter().filter(|package| wanted(&package.name)).flat_map(|p| p.targets);
    let names: Vec<String> = targets.filter(|t| t.kind.iter().any(|k| k == "test")).map(|t| t.name).collect();
    if names.is_empty() {
        bail!("no tests found: has the form of `cargo metadata` changed?");
    }
    Ok(names)
}
