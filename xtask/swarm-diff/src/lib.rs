//! The differential suite: runs the same `docker` commands against a real Swarm and against mesh,
//! and reports the differences.
//!
//! Code map: [`script`] parses the commands (`tests/swarm-diff/*.cmds`), [`raise`] starts either
//! cluster in a lab, [`side`] runs the commands there and waits for their effects, [`normalise`]
//! replaces ids, times and addresses in the answers, [`accepted`] reads which differences are
//! intended (`tests/swarm-diff/accepted.toml`), [`compare`] compares; [`contender`] gives both
//! clusters to a benchmark. All but `raise`, `side` and `contender` are pure.
//!
//! Invariants: both sides run the same commands in the same order; a difference without a reason in
//! the file fails the run; a reason that no longer explains a difference is reported.

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
    /// Run one side only, and compare with the other side's last answers
    #[arg(long, value_enum)]
    side: Option<Side>,
    /// Keep the labs diff-swarm and diff-mesh, and use them as they are if they exist
    #[arg(long)]
    keep: bool,
    /// Run nothing: compare the last answers again
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

    /// The file that its answers are kept in, to be compared again.
    fn answers_file(self) -> PathBuf {
        workspace::target_dir().join("swarm-diff").join(format!("{}.json", self.name()))
    }
}

/// The answers of one side: outcomes by section.
type Answers = BTreeMap<String, Vec<Outcome>>;

/// Runs the sections on both sides and prints the differences.
///
/// # Errors
/// A side can't be started, a section can't be read, or a difference has no reason in the file.
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

/// The named sections of the directory, or all of them, in the order of their names.
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

/// Starts one side, runs the sections there and stores its answers.
fn answer(side: Side, sections: &[Section], directory: &Path, keep: bool) -> Result<()> {
    let begun = Instant::now();
    let (cluster, layout) = raise::raise(side, directory, keep)?;
    println!("── {} is up after {:.0} s", side.name(), begun.elapsed().as_secs_f64());
    cluster.clean().context("remove what an earlier run left")?;
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
    serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))
}
