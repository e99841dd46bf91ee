//! Gathers what is in a machine: tests, the compiled programs that they read, and the tools that
//! they call, with the libraries of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mesh_checkout::command::Program;
use mesh_checkout::workspace;
use serde::Deserialize;

use super::archive::Archive;
use super::machine::{self, Job};
use super::modules;
use super::packages::Kernel;

/// Tools that tests call, beside busybox's, and where they are in the machine. busybox's own shell
/// would call its applets instead of them.
const TOOLS: [(&str, &str); 6] = [
    ("ip", "/usr/sbin/ip"),
    ("tc", "/usr/sbin/tc"),
    ("nft", "/usr/sbin/nft"),
    ("ethtool", "/usr/sbin/ethtool"),
    ("umount", "/usr/bin/umount"),
    ("dash", "/usr/bin/sh"),
];

/// The test binaries, and the files that they read.
#[derive(Debug)]
pub(super) struct Tests {
    binaries: BTreeMap<String, PathBuf>,
    objects: BTreeSet<PathBuf>,
    is_full: bool,
}

/// The part that matters of a line of cargo's messages.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
    #[serde(default)]
    env: Vec<(String, String)>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

impl Tests {
    /// Builds the test binaries.
    pub(super) fn build(is_full: bool) -> Result<Self> {
        let names = if is_full { &["programs", "walk", "datapath"][..] } else { &["programs"] };
        // As the test run does, see `test::cargo_test`: nothing is built twice.
        let messages = Program::cargo()
            .args(["test", "--quiet", "--workspace", "--no-run", "--message-format", "json"])
            .args(names.iter().flat_map(|name| ["--test", name]))
            .current_dir(workspace::root())
            .output()?;
        let (mut binaries, mut objects) = (BTreeMap::new(), BTreeSet::new());
        for message in messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok()) {
            if let (Some(target), Some(executable)) = (&message.target, &message.executable)
                && names.contains(&target.name.as_str())
            {
                binaries.insert(target.name.clone(), executable.clone());
            }
            if message.reason == "build-script-executed" {
                let is_object = |name: &str| name.starts_with("MESH_") && name.ends_with("_OBJECT");
                objects.extend(
                    message
                        .env
                        .iter()
                        .filter(|(name, _)| is_object(name))
                        .map(|(_, path)| PathBuf::from(path)),
                );
            }
        }
        if binaries.len() != names.len() || objects.is_empty() {
            bail!("cargo named neither tests nor objects: has the form of its messages changed?");
        }
        Ok(Self { binaries, objects, is_full })
    }
}

/// The initramfs of a machine that runs these jobs.
pub(super) fn gather(kernel: &Kernel, tests: &Tests, jobs: &[Job]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.device("/dev/console", (5, 1));
    for directory in ["/proc", "/sys", "/run", "/tmp", "/root", "/var", "/etc"] {
        archive.directory(directory);
    }
    let modules =
        if tests.is_full { modules::gather(&kernel.modules()?, modules::OF_TESTS)? } else { Vec::new() };
    let order: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    archive.file("/init", true, machine::init(&order, jobs).as_bytes());
    for (name, contents) in &modules {
        archive.file(&format!("/modules/{name}.ko"), false, contents);
    }
    archive.file("/bin/busybox", true, &busybox()?);
    let mut linked: Vec<(String, PathBuf)> = Vec::new();
    if tests.is_full {
        for (tool, place) in TOOLS {
            linked.push((place.to_owned(), in_path(tool)?));
        }
    }
    let stripped = workspace::target_dir().join("kernels").join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("make {}", stripped.display()))?;
    for (name, binary) in &tests.binaries {
        let small = stripped.join(name);
        Program::new("strip").arg("-o").arg(&small).arg(binary).run()?;
        linked.push((format!("/tests/{name}"), small));
    }
    let mut libraries = BTreeSet::new();
    for (place, program) in &linked {
        archive.file(place, true, &read(program)?);
        libraries.extend(libraries_of(program)?);
    }
    for library in &libraries {
        archive.file(&library.to_string_lossy(), true, &read(library)?);
    }
    for object in &tests.objects {
        archive.file(&object.to_string_lossy(), false, &read(object)?);
    }
    Ok(archive.finish())
}

/// The program busybox, which needs no library.
pub(super) fn busybox() -> Result<Vec<u8>> {
    read(&in_path("busybox")?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn in_path(program: &str) -> Result<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let mut paths = places.iter().map(|place| Path::new(place).join(program));
    paths.find(|path| path.is_file()).with_context(|| format!("find {program}; next: cargo xtask setup"))
}

/// The shared libraries that a program is linked with, and its loader.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Program::new("ldd").arg(program).output()?;
    Ok(named_libraries(&listed).map(PathBuf::from).collect())
}

/// The paths in the output of `ldd`.
fn named_libraries(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(named_libraries(listed).collect::<Vec<_>>(), expected);
    }
}
