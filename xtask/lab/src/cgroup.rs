//! Control groups, by which the lab keeps track of processes: every process started for a node,
//! with its descendants, is in the node's groups, so that it can be found and killed even if all
//! other records of it are lost.
//!
//! Works with version 1 (daemons are in the `pids` hierarchy, containers in all of them) and
//! version 2.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

const MOUNT: &str = "/sys/fs/cgroup";
const KILL_LIMIT: Duration = Duration::from_secs(15);

/// Makes the group at `path` (relative to the hierarchy's root) and returns the file by which a
/// process joins it.
pub(super) fn entrance(path: &Path) -> Result<PathBuf> {
    let directory = ledger_root()?.join(path);
    fs::create_dir_all(&directory).with_context(|| format!("make cgroup {}", directory.display()))?;
    Ok(directory.join("cgroup.procs"))
}

/// True if the process is in the group or below it.
pub(super) fn holds(path: &Path, pid: u32) -> bool {
    processes_below(path).is_ok_and(|pids| pids.contains(&pid))
}

/// Kills every process in the group and below it, in all hierarchies, until none is left.
pub(super) fn kill(path: &Path) -> Result<()> {
    kill_until_gone(|| processes_below(path))
        .with_context(|| format!("kill the processes of cgroup {}", path.display()))
}

/// Kills the processes that `find` finds until it finds none.
pub(super) fn kill_until_gone(find: impl Fn() -> io::Result<BTreeSet<u32>>) -> Result<()> {
    let deadline = Instant::now() + KILL_LIMIT;
    let mut killed = BTreeSet::new();
    loop {
        let left = find().context("look for processes")?;
        if left.is_empty() {
            killed.into_iter().for_each(reap);
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes {left:?} are still there {} s after SIGKILL", KILL_LIMIT.as_secs());
        }
        left.iter().copied().try_for_each(kill_now)?;
        killed.extend(left);
        thread::sleep(Duration::from_millis(5));
    }
}

/// The period of a CPU limit, microseconds.
const CPU_PERIOD: u32 = 100_000;

/// Limits what the group's processes may use of a CPU, in per cent; `None`: no limit. The group of
/// version 1's `cpu` hierarchy is made, and the processes are added to it.
pub(super) fn limit_cpu(path: &Path, percent: Option<u32>) -> Result<()> {
    let unified = Path::new(MOUNT).join(path).join("cpu.max");
    if unified.exists() {
        let quota = percent.map_or_else(|| "max".to_owned(), |share| (CPU_PERIOD / 100 * share).to_string());
        return fs::write(&unified, format!("{quota} {CPU_PERIOD}"))
            .with_context(|| format!("write {}", unified.display()));
    }
    let directory = Path::new(MOUNT).join("cpu").join(path);
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    for pid in processes_below(path).context("list the group's processes")? {
        // One that has ended needs no limit.
        drop(fs::write(directory.join("cgroup.procs"), pid.to_string()));
    }
    let quota = percent.map_or(-1, |share| i64::from(CPU_PERIOD / 100 * share));
    let file = directory.join("cpu.cfs_quota_us");
    fs::write(&file, quota.to_string()).with_context(|| format!("write {}", file.display()))
}

/// Sends SIGKILL; a process that is already gone is no error.
pub(super) fn kill_now(pid: u32) -> Result<()> {
    let target = process(pid).with_context(|| format!("{pid} is not a process id"))?;
    match kill_process(target, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("kill process {pid}")),
    }
}

/// Reaps a killed process if it is our own child, as it is when one program starts and kills it;
/// init reaps others.
pub(super) fn reap(pid: u32) {
    while let Some(child) = process(pid)
        && waitpid(Some(child), WaitOptions::empty()).is_err_and(|error| error == Errno::INTR)
    {}
}

fn process(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Removes the group and those below it from all hierarchies; they must be empty.
pub(super) fn remove(path: &Path) -> Result<()> {
    for root in hierarchies().context("list cgroup hierarchies")? {
        remove_tree(&root.join(path))
            .with_context(|| format!("remove cgroup {}", root.join(path).display()))?;
    }
    Ok(())
}

/// Removes a group if it is empty: the last lab removes the one that all labs share.
pub(super) fn remove_if_empty(path: &Path) {
    for root in hierarchies().unwrap_or_default() {
        // It usually fails because another lab has a group below it.
        drop(fs::remove_dir(root.join(path)));
    }
}

fn processes_below(path: &Path) -> io::Result<BTreeSet<u32>> {
    let mut pids = BTreeSet::new();
    for root in hierarchies()? {
        collect(&root.join(path), &mut pids)?;
    }
    Ok(pids)
}

fn collect(directory: &Path, pids: &mut BTreeSet<u32>) -> io::Result<()> {
    let Some(listed) = unless_gone(fs::read_to_string(directory.join("cgroup.procs")))? else {
        return Ok(());
    };
    pids.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
    children(directory)?.iter().try_for_each(|child| collect(child, pids))
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    children(directory)?.iter().try_for_each(|child| remove_tree(child))?;
    // A group stays busy for a moment after its last process was killed.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match unless_gone(fs::remove_dir(directory)) {
            Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            done => return done.map(drop),
        }
    }
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = unless_gone(fs::read_dir(directory))? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if unless_gone(entry.file_type())?.is_some_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Groups and processes may vanish during a scan: that is `None`, not an error.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

fn ledger_root() -> Result<PathBuf> {
    let mount = Path::new(MOUNT);
    if is_unified(mount) {
        return Ok(mount.to_owned());
    }
    let pids = mount.join("pids");
    if !pids.join("cgroup.procs").exists() {
        bail!("no cgroups at {MOUNT}: the lab (as the Docker engine) needs them mounted");
    }
    Ok(pids)
}

fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let mount = Path::new(MOUNT);
    if is_unified(mount) { Ok(vec![mount.to_owned()]) } else { children(mount) }
}

fn is_unified(mount: &Path) -> bool {
    mount.join("cgroup.controllers").exists()
}
