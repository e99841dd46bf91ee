//! The differential suite: the same `docker` commands towards a real Swarm and towards mesh, and
//! what differs.
//!
//! Code map: [`script`] reads the commands (`tests/swarm-diff/*.cmds`), [`raise`] makes either
//! cluster out of a lab, [`side`] runs the commands there and awaits what they cause, [`normalise`]
//! takes ids, times and addresses out of the answers, [`accepted`] reads which differences are
//! meant (`tests/swarm-diff/accepted.toml`), [`compare`] judges; [`contender`] lends both clusters
//! to a benchmark. All but `raise`, `side` and `contender` are pure.
//!
//! Invariants: both sides run the same commands in the same order; a difference without a reason in
//! the file fails the run; a reason that explains nothing any more is told.

mod accepted;
mod compare;
pub mod contender;
mod normalise;
mod raise;
mod script;
mod side;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use mesh_checkout::workspace;

use self::accepted::Accepted;
use self::compare::Report;
use self::script::Section;
use self::side::Outcome;

/// Arguments of `cargo xtask swarm-diff`.
#[derive(Debug, Args, Default)]
pub struct SwarmDiffArgs {
    /// Only these sections of tests/swarm-diff, by the names of their files
    sections: Vec<String>,
    /// Run one side only, and compare with what the other one answered last time
    #[arg(long, value_enum)]
    side: Option<Side>,
    /// Leave the labs diff-swarm and diff-mesh up, and use them as they are when they are up
    /// already
    #[arg(long)]
    keep: bool,
    /// Run nothing: compare anew what was answered last time
    #[arg(long, conflicts_with = "side")]
    compare: bool,
}

/// A cluster that the commands run against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    /// Docker engines joined into a Swarm
    Swarm,
    /// mesh on the same engines
    Mesh,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Swarm, Self::Mesh];

    fn name(self) -> &'static str {
        match self {
            Self::Swarm => "swarm",
            Self::Mesh => "mesh",
        }
    }

    /// Where its answers are kept, to be compared anew.
    fn answers_file(self) -> PathBuf {
        workspace::target_dir().join("swarm-diff").join(format!("{}.json", self.name()))
    }
}

/// What one side answered: outcomes by section.
type Answers = BTreeMap<String, Vec<Outcome>>;

/// Runs the sections on both sides and tells the differences.
///
/// # Errors
/// When a side can't be raised, a section can't be read, or a difference has no reason in the file.
pub fn run(args: &SwarmDiffArgs) -> Result<()> {
    let directory = workspace::root().join("tests/swarm-diff");
    let accepted = Accepted::load(&directory.join("accepted.toml"))?;
    let sections = wanted_sections(&directory, &args.sections)?;
    let sides: &[Side] = match (&args.side, args.compare) {
        (_, true) => &[],
        (Some(Side::Swarm), _) => &[Side::Swarm],
        (Some(Side::Mesh), _) => &[Side::Mesh],
        (None, _) => &Side::BOTH,
    };
    for side in sides {
        answer(*side, &sections, &directory, args.keep)?;
    }
    let [swarm, mesh] = Side::BOTH.map(load_answers);
    let report = Report::new(&sections, &swarm?, &mesh?, &accepted)?;
    let whole_suite = args.sections.is_empty();
    print!("{}", report.text(whole_suite));
    if report.unexplained() > 0 {
        bail!("{} commands differ without a reason in tests/swarm-diff/accepted.toml", report.unexplained());
    }
    Ok(())
}

/// Every section of the directory in the order of their names, or the ones named.
fn wanted_sections(directory: &Path, wanted: &[String]) -> Result<Vec<Section>> {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "cmds")
            && let Some(stem) = path.file_stem()
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        bail!("no section `{unknown}`; there are: {}", names.join(", "));
    }
    names
        .into_iter()
        .filter(|name| wanted.is_empty() || wanted.contains(name))
        .map(|name| {
            let path = directory.join(format!("{name}.cmds"));
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            Section::parse(&name, &text).with_context(|| format!("read {}", path.display()))
        })
        .collect()
}

/// Raises one side, runs the sections there and keeps what it answered.
fn answer(side: Side, sections: &[Section], directory: &Path, keep: bool) -> Result<()> {
    let begun = Instant::now();
    let (cluster, layout) = raise::raise(side, directory, keep)?;
    println!("── {} is up after {:.0} s", side.name(), begun.elapsed().as_secs_f64());
    cluster.clean().context("empty what an earlier run left")?;
    let mut answers = load_answers(side).unwrap_or_default();
    for section in sections {
        let begun = Instant::now();
        let outcomes = cluster.run(section).with_context(|| format!("section {}", section.name))?;
        let (count, seconds) = (outcomes.len(), begun.elapsed().as_secs_f64());
        println!("{:<6} {:<14} {count:>4} commands {seconds:>7.1} s", side.name(), section.name);
        answers.insert(section.name.clone(), outcomes);
        store_answers(side, &answers)?;
    }
    if keep { Ok(()) } else { raise::lower(&layout) }
}

fn store_answers(side: Side, answers: &Answers) -> Result<()> {
    let file = side.answers_file();
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let text = serde_json::to_vec_pretty(answers).context("encode the answers")?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

fn load_answers(side: Side) -> Result<Answers> {
    let file = side.answers_file();
    let text = fs::read(&file).with_context(|| {
        format!("read what {} answered ({}); next: cargo xtask swarm-diff", side.name(), file.display())
    })?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", file.display()))
}
