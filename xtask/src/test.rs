//! `cargo xtask test`: everything a clean checkout must pass, the quickest first, with a summary of times.
//!
//! Cluster tests find their lab by its name in the environment ([`LAB_VAR`]); each datapath gets a lab of its own.

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::command::Program;
use crate::lab::layout::{LabName, Layout};
use crate::lab::{Datapath, Lab, UpOptions};
use crate::{artifacts, lint, setup, tidy, workspace};

/// The variable that tells cluster tests the name of their lab.
pub const LAB_VAR: &str = "MESH_LAB";

const CLUSTER_DATAPATHS: [Datapath; 2] = [Datapath::Tc, Datapath::Xdp];
const LAB_NAME: &str = "test";

/// Arguments of `cargo xtask test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only these steps, instead of all
    #[arg(value_enum)]
    steps: Vec<Step>,
}

/// A step of the test run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// rustfmt
    Format,
    /// The house rules
    Tidy,
    /// clippy
    Clippy,
    /// Tests beside the code
    Unit,
    /// Tests of a crate's interface, some on a real etcd
    Integration,
    /// Kernel programs (needs root)
    Kernel,
    /// The lab, without mesh (needs root)
    Lab,
    /// Whole clusters on the tc datapath, then on xdp (needs root)
    Cluster,
}

/// How a step ended.
enum Outcome {
    Passed,
    /// It couldn't run, for this reason.
    Skipped(&'static str),
}

/// Runs the steps until one fails; always prints what ran, and for how long.
///
/// # Errors
/// The failed step's.
pub fn run(args: &TestArgs) -> Result<()> {
    setup::ensure()?;
    let steps = if args.steps.is_empty() { Step::value_variants() } else { &args.steps };
    let mut summary = Vec::new();
    let mut failed = None;
    for step in steps {
        let name = format!("{step:?}").to_lowercase();
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

impl Step {
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
            }
            Self::Unit => cargo_test(&["--workspace", "--lib", "--bins"])?,
            Self::Integration => {
                for package in packages_with_tests()? {
                    if !["mesh-agent", "mesh-tests", "xtask"].contains(&package.as_str()) {
                        cargo_test(&["--package", &package, "--test", "*"])?;
                    }
                }
            }
            Self::Kernel => return kernel(),
            Self::Lab => cargo_test(&["--package", "xtask", "--test", "*"])?,
            Self::Cluster => return cluster(),
        }
        Ok(Outcome::Passed)
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Kernel | Self::Lab | Self::Cluster)
    }
}

fn kernel() -> Result<Outcome> {
    if !has_tests("mesh-agent")? {
        return Ok(Outcome::Skipped("mesh-agent has no tests of kernel programs"));
    }
    cargo_test(&["--package", "mesh-agent", "--test", "*"])?;
    Ok(Outcome::Passed)
}

fn cluster() -> Result<Outcome> {
    if !has_tests("mesh-tests")? {
        return Ok(Outcome::Skipped("mesh-tests has no cluster tests"));
    }
    let binaries = artifacts::build()?;
    let layout = Layout::new(LAB_NAME.parse::<LabName>()?);
    for datapath in CLUSTER_DATAPATHS {
        println!("── cluster: {}", datapath.as_str());
        let options = UpOptions { nodes: 3, managers: 1, datapath, bare: false };
        Lab::up(&layout, &options, &binaries)?;
        let tested = cluster_tests();
        if tested.is_err() {
            println!("the lab stays for inspection: cargo xtask lab --name {LAB_NAME} status");
        }
        tested.with_context(|| format!("datapath {}", datapath.as_str()))?;
        Lab::down(&layout)?;
    }
    Ok(Outcome::Passed)
}

/// One test at a time: they share the lab, and some break it.
fn cluster_tests() -> Result<()> {
    Program::new(workspace::cargo())
        .args(["test", "--quiet", "--no-fail-fast", "--package", "mesh-tests"])
        .args(["--features", "cluster", "--test", "*"])
        .args(["--", "--test-threads", "1"])
        .env(LAB_VAR, LAB_NAME)
        .current_dir(workspace::root())
        .run_shown()
}

fn cargo_test(args: &[&str]) -> Result<()> {
    Program::new(workspace::cargo())
        .args(["test", "--quiet"])
        .args(args)
        .current_dir(workspace::root())
        .run_shown()
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
    kind: Vec<String>,
}

/// Packages that have a `tests/` directory: cargo calls it an error to be asked for tests that aren't there.
fn packages_with_tests() -> Result<Vec<String>> {
    let text = Program::new(workspace::cargo())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(workspace::root())
        .output()?;
    let metadata: Metadata = serde_json::from_str(&text).context("understand cargo metadata")?;
    let tested = |package: &Package| package.targets.iter().any(|t| t.kind.iter().any(|k| k == "test"));
    Ok(metadata.packages.into_iter().filter(tested).map(|p| p.name).collect())
}

fn has_tests(package: &str) -> Result<bool> {
    Ok(packages_with_tests()?.iter().any(|name| name == package))
}
