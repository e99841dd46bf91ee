//! `BENCHMARKS.md`: each subject's run writes its own section and keeps the others.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result};

use mesh_checkout::command::Program;
use mesh_checkout::workspace;

const INTRODUCTION: &str = "# Benchmarks\n\n\
    Written by `cargo xtask bench packet`, `memory`, `peers`, `services`, `starts` and `networks`; run them again for figures of your own. Ratios are what \
    counts: they are taken within one round, absolute figures are this machine's.\n";

/// Replaces the section `name` by `body`, and writes the plots.
pub(super) fn write(name: &str, body: &str, plots: &[(String, String)]) -> Result<()> {
    let path = workspace::root().join("BENCHMARKS.md");
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => INTRODUCTION.to_owned(),
        Err(error) => return Err(error).context("read BENCHMARKS.md"),
    };
    let section = format!("{body}\n{}\n", machine()?);
    fs::write(&path, replaced(&before, name, &section)).context("write BENCHMARKS.md")?;
    let directory = plots_directory();
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    for (file, svg) in plots {
        fs::write(directory.join(file), svg).with_context(|| format!("write {file}"))?;
    }
    println!("wrote {} and the plots in {}", path.display(), directory.display());
    Ok(())
}

fn plots_directory() -> PathBuf {
    workspace::root().join("xtask/bench/plots")
}

/// `text` with the section of this name replaced, or added at the end.
fn replaced(text: &str, name: &str, body: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
    let section = format!("{begin}{body}{end}");
    match (text.find(&begin), text.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{section}{}", &text[..from], &text[to + end.len()..])
        }
        _ => format!("{}\n\n{section}", text.trim_end()),
    }
}

/// The machine, the date, and how busy the machine was at the end: a measurement keeps about two
/// processes busy by itself.
fn machine() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let models: Vec<&str> = cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, model)| model.trim()))
        .collect();
    let kernel = Program::new("uname").arg("-r").output()?;
    let date = Program::new("date").args(["-u", "+%F"]).output()?;
    let model = models.first().unwrap_or(&"unknown CPU");
    let loads = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let load = loads.split(' ').next().unwrap_or_default();
    Ok(format!(
        "Machine: {} × {model}, Linux {}; {}; load average {load}.",
        models.len().max(1),
        kernel.trim(),
        date.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_others_stay() {
        let both = replaced(&replaced("# Intro\n", "a", "one\n"), "b", "two\n");
        let changed = replaced(&both, "a", "new\n");
        assert!(changed.starts_with("# Intro\n"), "the introduction stays: {changed}");
        assert!(changed.contains("new\n") && !changed.contains("one\n"), "replaced: {changed}");
        assert!(changed.contains("two\n"), "the other section stays: {changed}");
        assert_eq!(replaced(&changed, "a", "new\n"), changed, "a second replacement changes the text");
    }
}
