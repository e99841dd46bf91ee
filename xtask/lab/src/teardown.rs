//! Removes a lab, whatever state it is in: goes by what exists on the machine, not by the record.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use super::cgroup;
use super::layout::Layout;
use super::machine;
use super::netns::Netns;
use super::network;

/// Removes every trace of the lab: processes, namespaces, mounts, pins, cgroups, files. A lab that
/// doesn't exist is no error.
pub(super) fn remove(layout: &Layout) -> Result<()> {
    let netns: Vec<Netns> = Netns::list()?.into_iter().filter(|n| layout.owns_netns(n.name())).collect();
    cgroup::kill(&layout.cgroup())?;
    kill_inside(&netns)?;
    for name in nodes_left(layout)? {
        if let Some(node) = layout.node_named(&name) {
            machine::remove(&node)?;
        }
    }
    network::remove_wires(layout)?;
    netns.iter().try_for_each(Netns::delete)?;
    machine::clear_bpffs(&layout.bridge_bpf_dir())?;
    unmount_below(&layout.run_dir())?;
    unmount_below(&layout.state_dir())?;
    remove_directory(&layout.run_dir())?;
    remove_directory(&layout.state_dir())?;
    cgroup::remove(&layout.cgroup())?;
    remove_shared_if_empty(layout);
    match fs::remove_file(layout.record_file()) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context("remove lab.json"),
        _ => Ok(()),
    }
}

/// Kills the processes inside the namespaces: those of `lab exec`, of tests, of containers on the
/// host's network.
pub(super) fn kill_inside(netns: &[Netns]) -> Result<()> {
    let mut inodes = BTreeSet::new();
    for ns in netns {
        match fs::metadata(ns.path()) {
            Ok(metadata) => drop(inodes.insert((metadata.dev(), metadata.ino()))),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("inspect network namespace {}", ns.name())),
        }
    }
    cgroup::kill_until_gone(|| processes_in(&inodes))
        .context("kill the processes of the lab's network namespaces")
}

fn processes_in(inodes: &BTreeSet<(u64, u64)>) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that has just ended has no namespace any more.
        if let Ok(metadata) = fs::metadata(entry.path().join("ns/net"))
            && inodes.contains(&(metadata.dev(), metadata.ino()))
        {
            found.insert(pid);
        }
    }
    Ok(found)
}

/// The names of nodes that left something in the run directory.
fn nodes_left(layout: &Layout) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for directory in [layout.run_dir(), layout.run_dir().join("ns")] {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("list {}", directory.display())),
        };
        for entry in entries {
            let name = entry.with_context(|| format!("list {}", directory.display()))?.file_name();
            names.insert(name.to_string_lossy().split('.').next().unwrap_or_default().to_owned());
        }
    }
    Ok(names)
}

/// Unmounts everything at and below a directory, the newest mount first.
fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("list mounts")?;
    for target in targets_below(&mounts, directory).into_iter().rev() {
        unmount(&target, UnmountFlags::DETACH).with_context(|| format!("unmount {}", target.display()))?;
    }
    Ok(())
}

fn targets_below(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let target = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
    mountinfo.lines().filter_map(target).filter(|t| t.starts_with(directory)).collect()
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the directories that all labs share, with the last lab.
fn remove_shared_if_empty(layout: &Layout) {
    for directory in [layout.run_dir(), layout.state_dir()] {
        if let Some(parent) = directory.parent() {
            // It usually fails because of another lab's files.
            drop(fs::remove_dir(parent));
        }
    }
    if let Some(parent) = layout.cgroup().parent() {
        cgroup::remove_if_empty(parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_this_lab_are_listed() {
        let mountinfo = "30 1 0:5 / /run/mesh-lab/x rw - tmpfs t rw\n\
                         31 30 0:6 / /run/mesh-lab/x/node-1/bpf rw - bpf bpf rw\n\
                         32 1 0:7 / /run/mesh-lab/xy rw - tmpfs t rw\n";
        let seen = targets_below(mountinfo, Path::new("/run/mesh-lab/x"));
        let expected = ["/run/mesh-lab/x", "/run/mesh-lab/x/node-1/bpf"].map(PathBuf::from);
        assert_eq!(seen, expected, "mounts of lab x, oldest first");
    }
}
