//! A node as a machine: beside its network namespace, it has mount and UTS namespaces.
//!
//! Its `/run` is empty except for the node's own directory, so that engines (which have sockets at
//! fixed paths there) and agents of different nodes don't clash; `/sys` shows its own network
//! devices; the node's engine and agent see the same mounts, which vanish with the machine.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use mesh_checkout::command::Program;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use super::layout::{CLIENT_IP, Layout, NodeLayout};
use super::netns::Netns;
use super::network;

/// Directories below a node's, and the size of their disks. etcd preallocates its write-ahead log
/// in files of 64 MB.
const SMALL_DISKS: [(&str, &str); 2] = [("agent", "64m"), ("etcd", "384m")];

/// Runs inside the new namespaces. Arguments: host name, the node's run directory, an empty
/// directory, a resolv.conf. The cgroup tree is kept: `ip netns exec`, which hides it behind a
/// fresh `/sys`, leaves an engine without devices.
const SET_UP: &str = r#"
node=$1 run=$2 stage=$3 resolv=$4
echo "$node" > /proc/sys/kernel/hostname
mount --rbind "$run" "$stage"
mount -t tmpfs -o mode=0755 mesh-lab /run
mkdir -p "$run"
mount --move "$stage" "$run"
mount --rbind /sys/fs/cgroup "$stage"
mount -t sysfs sysfs /sys
mount --move "$stage" /sys/fs/cgroup
target=$(readlink -m /etc/resolv.conf)
case "$target" in /run/*) mkdir -p "${target%/*}"; : > "$target";; esac
if [ -e "$target" ]; then mount --bind "$resolv" "$target"; fi
"#;

/// Mounts the tmpfs of everything in a lab that a reboot would lose. Private, so that no mount of a
/// node leaks out, and because a mount namespace can only be kept on a private mount.
pub(super) fn mount_run_dir(layout: &Layout) -> Result<()> {
    let directory = layout.run_dir();
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    mount("mesh-lab", &directory, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
        .with_context(|| format!("mount a tmpfs at {} (needs root)", directory.display()))?;
    mount_change(&directory, MountPropagationFlags::PRIVATE)
        .with_context(|| format!("make {} private", directory.display()))?;
    fs::create_dir(directory.join("ns")).context("make the directory of namespaces")
}

/// Gives a node's agent and etcd a small disk each, which a test can fill without filling the
/// machine's. They survive a power cut, as the lab's directory does.
pub(super) fn mount_small_disks(node: &NodeLayout) -> Result<()> {
    for (name, size) in SMALL_DISKS {
        let directory = node.state_dir().join(name);
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let options = CString::new(format!("mode=0700,size={size}")).context("a mount option")?;
        mount("mesh-lab", &directory, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))
            .with_context(|| format!("mount a tmpfs at {}", directory.display()))?;
    }
    Ok(())
}

/// Makes the machine around a node's network namespace, which must exist.
pub(super) fn build(node: &NodeLayout) -> Result<()> {
    let disk = node.state_dir();
    let stage = disk.join("stage");
    for directory in [node.run_dir(), stage.clone(), disk.join("log"), disk.join("etcd")] {
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    }
    network::mount_bpffs(&node.bpf_dir())?;
    // No resolver listens there: the client answers "port unreachable" at once, so that look-ups
    // fail without a wait.
    let resolv = disk.join("resolv.conf");
    write(&resolv, &format!("nameserver {CLIENT_IP}\n"))?;
    write(&node.engine_config(), "{\"live-restore\": true}\n")?;
    for kind in ["mnt", "uts"] {
        let file = node.namespace_file(kind);
        File::create(&file).with_context(|| format!("make {}", file.display()))?;
    }
    Program::new("nsenter")
        .arg(format!("--net={}", Netns::named(node.netns()).path().display()))
        .arg("unshare")
        .arg(format!("--mount={}", node.namespace_file("mnt").display()))
        .arg(format!("--uts={}", node.namespace_file("uts").display()))
        .args(["--propagation", "private", "sh", "-ec", SET_UP, "machine", &node.name()])
        .args([node.run_dir(), stage, resolv])
        .run()
        .with_context(|| format!("make the machine {}", node.name()))
}

/// Undoes [`build`] once no process is left inside, as a power cut does.
pub(super) fn remove(node: &NodeLayout) -> Result<()> {
    for kind in ["mnt", "uts"] {
        let file = node.namespace_file(kind);
        if file.exists() {
            unmount_if_mounted(&file)?;
            fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        }
    }
    clear_bpffs(&node.bpf_dir())?;
    let run = node.run_dir();
    if run.exists() {
        fs::remove_dir_all(&run).with_context(|| format!("remove {}", run.display()))?;
    }
    Ok(())
}

/// The kernel's own files in each bpffs (`maps.debug`, `progs.debug`), which can't be removed.
const KERNEL_PIN_EXTENSION: &str = "debug";

/// Removes the pins of a bpffs, then its mount: otherwise a copy of the mount elsewhere would keep
/// programs loaded.
pub(super) fn clear_bpffs(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        if path.extension().is_some_and(|extension| extension == KERNEL_PIN_EXTENSION) {
            continue;
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("remove pin {}", path.display()))?;
    }
    unmount_if_mounted(directory)
}

/// Unmounts `target`; a target without a mount is no error.
fn unmount_if_mounted(target: &Path) -> Result<()> {
    match unmount(target, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("unmount {}", target.display())),
    }
}

/// The words that run a program on the machine, to be put before its command line.
pub(super) fn entrance(node: &NodeLayout) -> Vec<String> {
    vec![
        "nsenter".to_owned(),
        format!("--net={}", Netns::named(node.netns()).path().display()),
        format!("--mount={}", node.namespace_file("mnt").display()),
        format!("--uts={}", node.namespace_file("uts").display()),
    ]
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
