//! The packages before and after an upgrade: those of a commit are built once in a work tree of
//! their own, those of this checkout each time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mesh_checkout::command::Program;
use mesh_checkout::workspace;

use crate::soak::machines;

/// What a version ends with that is to be higher than the same without it.
const RAISED: &str = "+upgrade1";

/// Packages of one version.
#[derive(Debug)]
pub(super) struct Packages {
    /// Where they come from, for people.
    pub(super) origin: String,
    pub(super) version: String,
    pub(super) files: Vec<PathBuf>,
}

/// The packages of the commit `from`, or of a directory, and those of this checkout with a higher
/// version.
///
/// # Errors
/// They can't be built.
pub(super) fn both(from: &str, from_packages: Option<&Path>) -> Result<(Packages, Packages)> {
    let head = commit("HEAD")?;
    let old_commit = if from_packages.is_some() { None } else { Some(commit(from)?) };
    // The build of another commit takes the place of this checkout's in the target directory, so it
    // comes first.
    let old = match (from_packages, &old_commit) {
        (Some(directory), _) => Some(read(directory, directory.display().to_string())?),
        (None, Some(commit)) if *commit != head => Some(of_commit(commit)?),
        _ => None,
    };
    let new = of_checkout()?;
    let old = match old {
        Some(old) => old,
        None => read(&dist(), "this checkout".to_owned())?,
    };
    let new = raise(new, &old.version)?;
    Ok((old, new))
}

fn dist() -> PathBuf {
    workspace::root().join("target/dist")
}

fn git(words: &[&str]) -> Program {
    Program::new("git").args(words).current_dir(workspace::root())
}

/// The hash of a commit.
fn commit(name: &str) -> Result<String> {
    let hash = git(&["rev-parse", "--verify", &format!("{name}^{{commit}}")]).output();
    Ok(hash.with_context(|| format!("--from {name} is no commit"))?.trim().to_owned())
}

fn read(directory: &Path, origin: String) -> Result<Packages> {
    let files = machines::packages(directory, "give a directory with mesh-agent, mesh-control and mesh")?;
    let first = files.first().context("a package")?;
    let version = Program::new("dpkg-deb").arg("--field").arg(first).arg("Version").output()?;
    Ok(Packages { origin, version: version.trim().to_owned(), files })
}

fn make(checkout: &Path) -> Result<()> {
    Program::cargo()
        .args(["xtask", "dist", "--profile", "dev"])
        // Of another checkout, only mesh's own crates are built anew.
        .env("CARGO_TARGET_DIR", workspace::target_dir())
        .current_dir(checkout)
        .run_shown()
        .with_context(|| format!("make the packages of {}", checkout.display()))
}

fn of_checkout() -> Result<Packages> {
    make(workspace::root())?;
    read(&dist(), "this checkout".to_owned())
}

/// The packages of a commit, which are made if they were not before.
fn of_commit(commit: &str) -> Result<Packages> {
    let kept = dist().join(commit);
    let origin = format!("commit {}", &commit[..commit.len().min(12)]);
    if let Ok(packages) = read(&kept, origin.clone()) {
        return Ok(packages);
    }
    let tree = workspace::root().join("target/work-trees").join(commit);
    if tree.exists() {
        remove_tree(&tree)?;
    }
    git(&["worktree", "add", "--force", "--detach"]).arg(&tree).arg(commit).run()?;
    let made = make(&tree).and_then(|()| keep(&tree.join("target/dist"), &kept));
    remove_tree(&tree)?;
    made?;
    read(&kept, origin)
}

fn remove_tree(tree: &Path) -> Result<()> {
    git(&["worktree", "remove", "--force"]).arg(tree).run()
}

/// Copies the packages of one directory to another, which exists only once it is complete.
fn keep(from: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("clear {}", fresh.display()))?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("make {}", fresh.display()))?;
    for package in machines::packages(from, "cargo xtask dist made none")? {
        let copy = fresh.join(package.file_name().unwrap_or_default());
        fs::copy(&package, &copy).with_context(|| format!("copy {}", package.display()))?;
    }
    fs::rename(&fresh, to).with_context(|| format!("put {} in place", to.display()))
}

/// The packages with a version above `old`, so that dpkg sees an upgrade.
fn raise(packages: Packages, old: &str) -> Result<Packages> {
    let is_higher =
        |version: &str| Program::new("dpkg").args(["--compare-versions", version, "gt", old]).succeeds();
    if is_higher(&packages.version) {
        return Ok(packages);
    }
    let version = format!("{old}{RAISED}");
    ensure!(is_higher(&version), "dpkg takes {version} for no upgrade of {old}");
    let directory = dist().join("raised");
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    let files =
        packages.files.iter().map(|file| repack(file, &version, &directory)).collect::<Result<_>>()?;
    Ok(Packages { origin: packages.origin, version, files })
}

/// Writes a copy of a package with another version into `directory`.
fn repack(file: &Path, version: &str, directory: &Path) -> Result<PathBuf> {
    let stem = file.file_stem().unwrap_or_default();
    let contents = directory.join(stem);
    fs::create_dir_all(&contents).with_context(|| format!("make {}", contents.display()))?;
    Program::new("dpkg-deb").arg("--raw-extract").arg(file).arg(&contents).run()?;
    let control = contents.join("DEBIAN/control");
    let text = fs::read_to_string(&control).with_context(|| format!("read {}", control.display()))?;
    fs::write(&control, with_version(&text, version))
        .with_context(|| format!("write {}", control.display()))?;
    let name = stem.to_string_lossy();
    let package = name.split('_').next().unwrap_or_default();
    let made = directory.join(format!("{package}_{version}.deb"));
    Program::new("dpkg-deb")
        .args(["--root-owner-group", "-Znone", "--build"])
        .arg(&contents)
        .arg(&made)
        .run()?;
    fs::remove_dir_all(&contents).with_context(|| format!("remove {}", contents.display()))?;
    Ok(made)
}

fn with_version(control: &str, version: &str) -> String {
    let line = |line: &str| {
        if line.starts_with("Version:") { format!("Version: {version}\n") } else { format!("{line}\n") }
    };
    control.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_version_of_a_package_is_raised() {
        let control = "Package: mesh\nVersion: 0.1.0-1\nDescription: x\n Version: y\n";
        let raised = with_version(control, "0.1.0-1+upgrade1");
        assert_eq!(raised, "Package: mesh\nVersion: 0.1.0-1+upgrade1\nDescription: x\n Version: y\n");
    }
}
