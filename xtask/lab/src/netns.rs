//! Network namespaces by name, as `ip netns` keeps them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::fs::statfs;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use mesh_checkout::command::Program;

const DIRECTORY: &str = "/run/netns";

/// The magic number of the file system of namespaces.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// A network namespace, which may or may not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// The namespace of that name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// The namespace that a process stands in, such as a container's first one. It has no name in
    /// `ip netns`: it is there as long as the process is.
    pub fn of_process(pid: u32) -> Self {
        Self { name: format!("/proc/{pid}/ns/net") }
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that keeps it open. A name that is a path already stays as it is.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// All named namespaces.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list() -> Result<Vec<Self>> {
        let entries = match fs::read_dir(DIRECTORY) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).context("list /run/netns"),
        };
        entries
            .map(|entry| Ok(Self::named(entry.context("list /run/netns")?.file_name().to_string_lossy())))
            .collect()
    }

    /// Makes it, and sets its loopback up.
    pub fn add(&self) -> Result<()> {
        Program::new("ip").args(["netns", "add", &self.name]).run()?;
        self.ip(&["link", "set", "lo", "up"])
    }

    /// True if the name has a namespace: a file that a reboot left has none.
    pub(super) fn is_live(&self) -> bool {
        statfs(self.path()).is_ok_and(|found| found.f_type == NSFS_MAGIC)
    }

    /// Removes it, or its leftover file; its devices go once no process is left inside.
    pub fn delete(&self) -> Result<()> {
        if self.is_live() {
            return Program::new("ip").args(["netns", "delete", &self.name]).run();
        }
        match fs::remove_file(self.path()) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove {}", self.path().display()))
            }
            _ => Ok(()),
        }
    }

    /// Runs an `ip` command inside.
    ///
    /// # Errors
    /// It fails; the message has its output.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        Program::new("ip").args(["-netns", &self.name]).args(args).run()
    }

    /// Runs `work` on a thread inside the namespace, so that its sockets and `/proc/sys/net` are
    /// the namespace's.
    ///
    /// # Errors
    /// The namespace can't be entered, or `work` fails.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file =
            File::open(self.path()).with_context(|| format!("open network namespace {}", self.name))?;
        let inside = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("enter network namespace {} (needs root)", self.name))?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|_| Err(anyhow!("work in network namespace {} panicked", self.name)))
    }

    /// Writes a sysctl of the namespace, if the kernel has it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.run(|| match fs::write(&path, value) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done.with_context(|| format!("set {key} = {value}")),
        })
    }
}
