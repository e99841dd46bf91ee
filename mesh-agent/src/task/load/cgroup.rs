//! Reads a container's CPU time and limit from its control group: version 2, or 1 where the engine
//! still uses that.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// The files that count a container's CPU time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CpuAccount {
    /// Version 2: the group's directory.
    Unified(PathBuf),
    /// Version 1: the group's directories in the hierarchies of `cpuacct` and `cpu`.
    Split { time: PathBuf, limit: PathBuf },
}

impl CpuAccount {
    /// Finds the control group of a process.
    pub(super) fn of_process(pid: u32) -> Option<Self> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Self::find(Path::new(MOUNT), &groups)
    }

    /// Finds the directories in a process's list of groups.
    fn find(mount: &Path, groups: &str) -> Option<Self> {
        let group = |wanted: &str| {
            groups.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                let is_wanted = controllers.split(',').any(|controller| controller == wanted);
                is_wanted.then(|| path.trim_start_matches('/').to_owned())
            })
        };
        if let (Some(time), Some(limit)) = (group("cpuacct"), group("cpu")) {
            let time = mount.join("cpuacct").join(time);
            if time.join("cpuacct.usage").exists() {
                return Some(Self::Split { time, limit: mount.join("cpu").join(limit) });
            }
        }
        let unified = group("")?;
        let roots = [mount.to_owned(), mount.join("unified")];
        let directory =
            roots.into_iter().map(|root| root.join(&unified)).find(|group| group.join("cpu.stat").exists());
        directory.map(Self::Unified)
    }

    /// CPU time used so far.
    pub(super) fn used(&self) -> Option<Duration> {
        match self {
            Self::Unified(group) => {
                let stat = fs::read_to_string(group.join("cpu.stat")).ok()?;
                let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
                usage.trim().parse().ok().map(Duration::from_micros)
            }
            Self::Split { time, .. } => {
                let usage = fs::read_to_string(time.join("cpuacct.usage")).ok()?;
                usage.trim().parse().ok().map(Duration::from_nanos)
            }
        }
    }

    /// The number of CPUs that it may use: its limit, else all of the machine's.
    pub(super) fn limit(&self) -> f64 {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let (quota, period) = match self {
            Self::Unified(group) => {
                let limit = read(group.join("cpu.max"));
                let mut words = limit.split_whitespace().map(str::to_owned);
                (words.next().unwrap_or_default(), words.next().unwrap_or_default())
            }
            Self::Split { limit, .. } => {
                (read(limit.join("cpu.cfs_quota_us")), read(limit.join("cpu.cfs_period_us")))
            }
        };
        // "max" and -1 mean no limit.
        match (quota.trim().parse::<u32>(), period.trim().parse::<u32>()) {
            (Ok(quota @ 1..), Ok(period @ 1..)) => f64::from(quota) / f64::from(period),
            _ => machine(),
        }
    }
}

/// The number of the machine's CPUs.
fn machine() -> f64 {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    u32::try_from(cpus).map_or(1.0, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of files below a directory of its own.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }
        root
    }

    #[test]
    fn version_2_is_read() {
        let root = tree(&[
            ("docker/abc/cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
            ("docker/abc/cpu.max", "50000 100000\n"),
        ]);
        let account = CpuAccount::find(root.path(), "0::/docker/abc\n").expect("an account");
        assert_eq!(account.used(), Some(Duration::from_millis(2500)));
        assert!((account.limit() - 0.5).abs() < 1e-9, "half a CPU, saw {}", account.limit());
        fs::write(root.path().join("docker/abc/cpu.max"), "max 100000\n").expect("a file");
        assert!((account.limit() - machine()).abs() < 1e-9, "no limit, saw {}", account.limit());
    }

    #[test]
    fn version_1_is_read() {
        let root = tree(&[
            ("cpuacct/docker/abc/cpuacct.usage", "1500000000\n"),
            ("cpu/docker/abc/cpu.cfs_quota_us", "200000\n"),
            ("cpu/docker/abc/cpu.cfs_period_us", "100000\n"),
        ]);
        let groups = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n";
        let account = CpuAccount::find(root.path(), groups).expect("an account");
        assert_eq!(account.used(), Some(Duration::from_millis(1500)));
        assert!((account.limit() - 2.0).abs() < 1e-9, "two CPUs, saw {}", account.limit());
        fs::write(root.path().join("cpu/docker/abc/cpu.cfs_quota_us"), "-1\n").expect("a file");
        assert!((account.limit() - machine()).abs() < 1e-9, "no limit, saw {}", account.limit());
        assert_eq!(CpuAccount::find(root.path(), "0::/elsewhere\n"), None);
    }
}
