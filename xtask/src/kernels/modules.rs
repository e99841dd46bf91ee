//! The modules that a machine loads, in an order in which each finds what it depends on.
//!
//! A module names its dependencies itself, so no index of them is needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// What the walks and the agent's data plane use, if it isn't in the kernel itself. libcrc32c names
/// no dependency on the algorithm that it asks for.
pub(super) const OF_TESTS: &[&str] =
    &["crc32c_generic", "veth", "bridge", "vxlan", "tun", "sch_ingress", "cls_bpf", "nf_tables", "nft_ct"];

/// A module: its name and its contents.
pub(super) type Module = (String, Vec<u8>);

/// The modules below `directory` that are wanted, and their dependencies.
pub(super) fn gather(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut paths = BTreeMap::new();
    find(directory, &mut paths)?;
    let mut ordered = Vec::new();
    for name in wanted {
        add(name, &paths, &mut ordered)?;
    }
    Ok(ordered)
}

/// Modules by name, in which `-` and `_` are the same.
fn find(directory: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        let path = entry.path();
        // Links lead out of the package, to sources.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find(&path, paths)?;
        } else if let Some((name, "ko" | "ko.xz")) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('.'))
        {
            paths.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Adds a module behind its dependencies. One that has no file is in the kernel itself.
fn add(name: &str, paths: &BTreeMap<String, PathBuf>, ordered: &mut Vec<Module>) -> Result<()> {
    let Some(path) = paths.get(name) else { return Ok(()) };
    if ordered.iter().any(|(present, _)| present == name) {
        return Ok(());
    }
    let contents = read(path)?;
    for dependency in dependencies(&contents) {
        add(&dependency.replace('-', "_"), paths, ordered)?;
    }
    ordered.push((name.to_owned(), contents));
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("read {}", path.display()));
    }
    let output = Command::new("xz").args(["-dc"]).arg(path).stdin(Stdio::null()).output();
    let output = output.context("run xz; `cargo xtask setup` installs it")?;
    ensure!(output.status.success(), "xz -dc {} failed ({})", path.display(), output.status);
    Ok(output.stdout)
}

/// The names in a module's field `depends`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let value = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(
            dependencies(b"ELF\0license=GPL\0depends=udp_tunnel,ip6_udp_tunnel\0name=vxlan\0").len(),
            2
        );
        assert_eq!(dependencies(b"\0depends=\0name=veth\0"), Vec::<String>::new());
        assert_eq!(dependencies(b"no module"), Vec::<String>::new());
    }

    #[test]
    fn a_module_comes_behind_what_it_depends_on() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("kernel/net");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("vxlan.ko"), "\0depends=udp_tunnel\0").unwrap();
        fs::write(below.join("udp-tunnel.ko"), "\0depends=\0").unwrap();
        fs::write(below.join("other.ko"), "\0depends=\0").unwrap();
        let names: Vec<String> =
            gather(directory.path(), OF_TESTS).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["udp_tunnel", "vxlan"]);
    }
}
