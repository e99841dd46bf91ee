//! Tasks' files on a tmpfs: a private directory for each task, a file for each reference.
//!
//! Invariants: nothing is written to a file system on a disk; only root can open the directories, a
//! task sees its files through bind mounts alone; a file has its owner and mode before it has
//! contents. Blocks.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use mesh_state::dependency::DependencyKind;
use mesh_state::ids::{DependencyId, TaskId};
use rustix::fs::{FsWord, statfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use thiserror::Error;
use tracing::warn;

use super::delivered::PrivateBytes;
use mesh_runtime::private_file::create_private_dir;

/// `f_type` of tmpfs (statfs(2)).
const TMPFS: FsWord = 0x0102_1994;
/// `f_type` of ramfs, which is never swapped out either.
const RAMFS: FsWord = 0x8584_58f6;

/// The file of a secret or config in a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlan {
    /// Whether it holds a secret or a config.
    pub kind: DependencyKind,
    /// The id of the object that it holds.
    pub id: DependencyId,
    /// The object's name, for messages.
    pub name: String,
    /// The file's path on this node.
    pub source: PathBuf,
    /// The file's path in the task.
    pub target: String,
    /// The file's owner and group.
    pub owner: (u32, u32),
    /// The file's permission bits.
    pub permissions: u32,
}

/// A file that the agent itself writes for a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFile {
    /// The file's path on this node.
    pub source: PathBuf,
    /// The file's path in the task.
    pub target: String,
    /// What the file holds.
    pub text: String,
}

impl FilePlan {
    /// The kind and id of the object that the file holds.
    pub(super) fn dependency(&self) -> (DependencyKind, DependencyId) {
        (self.kind, self.id.clone())
    }
}

/// Why files can't be written or removed.
#[derive(Debug, Error)]
pub enum FilesError {
    /// The file system refused an operation.
    #[error("{verb} {}", path.display())]
    Io {
        /// What was done with the file: make, write or remove.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// No tmpfs can be mounted.
    #[error(
        "mount a tmpfs at {}, as secrets must not be on a disk: run mesh-agent as root, or name a directory on a tmpfs with --task-files",
        path.display()
    )]
    NoTmpfs {
        /// The mount point.
        path: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
}

/// The directory of all tasks' files.
#[derive(Debug, Clone)]
pub struct TaskFiles {
    root: PathBuf,
}

impl TaskFiles {
    /// Files below `root`; unless it is on a tmpfs already, one is mounted there when the first
    /// file is written.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Writes all files of a task, and replaces those that an earlier attempt left.
    ///
    /// # Errors
    /// [`FilesError`]; what was written is removed with the task.
    pub fn write(
        &self,
        task: &TaskId,
        plans: &[FilePlan],
        contents: &[PrivateBytes],
        own: Option<&OwnFile>,
    ) -> Result<(), FilesError> {
        self.ensure_tmpfs()?;
        self.remove(task)?;
        let directory = directory(&self.root, task);
        create_private_dir(&directory).map_err(failed("make directory", &directory))?;
        for (plan, data) in plans.iter().zip(contents) {
            write(plan, data).map_err(failed("write", &plan.source))?;
        }
        if let Some(own) = own {
            write_own(own).map_err(failed("write", &own.source))?;
        }
        Ok(())
    }

    /// Removes a task's files; succeeds if it has none.
    ///
    /// # Errors
    /// [`FilesError::Io`]
    pub fn remove(&self, task: &TaskId) -> Result<(), FilesError> {
        let directory = directory(&self.root, task);
        match fs::remove_dir_all(&directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &directory)(source))
            }
            _ => Ok(()),
        }
    }

    /// Removes the files of all tasks that are not in `living`.
    ///
    /// # Errors
    /// [`FilesError::Io`]
    pub fn sweep(&self, living: &BTreeSet<TaskId>) -> Result<(), FilesError> {
        let living: BTreeSet<PathBuf> = living.iter().map(|task| directory(&self.root, task)).collect();
        let entries = match fs::read_dir(&self.root) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed("list", &self.root))?,
        };
        for entry in entries {
            let path = entry.map_err(failed("list", &self.root))?.path();
            if !living.contains(&path) {
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes the directory, and the tmpfs that was mounted for it. If files of tasks are left,
    /// everything stays. Returns whether the directory was removed.
    ///
    /// # Errors
    /// [`FilesError::Io`]
    pub fn dismantle(&self) -> Result<bool, FilesError> {
        let is_empty = match fs::read_dir(&self.root) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries.map_err(failed("list", &self.root))?.next().is_none(),
        };
        if !is_empty {
            warn!(path = %self.root.display(), "tasks' files stay: their containers are still there");
            return Ok(false);
        }
        match unmount(&self.root, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(source) => return Err(failed("unmount", &self.root)(source.into())),
        }
        fs::remove_dir(&self.root).map(|()| true).map_err(failed("remove", &self.root))
    }

    fn ensure_tmpfs(&self) -> Result<(), FilesError> {
        create_private_dir(&self.root).map_err(failed("make directory", &self.root))?;
        let found = statfs(&self.root).map_err(|source| failed("look at", &self.root)(source.into()))?;
        if [TMPFS, RAMFS].contains(&found.f_type) {
            return Ok(());
        }
        // Not `noexec`: a config may be a script that a task executes.
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let make = |options| mount("mesh-task-files", &self.root, "tmpfs", flags, Some(options));
        // Kernels before 6.4 don't know `noswap`.
        make(c"mode=0700,noswap")
            .or_else(|_| make(c"mode=0700"))
            .map_err(|source| FilesError::NoTmpfs { path: self.root.clone(), source })
    }
}

/// The directory of a task's files.
pub fn directory(root: &Path, task: &TaskId) -> PathBuf {
    // Ids come from control and are alphanumeric; filtering keeps any other id from leaving the
    // root, or being the root itself.
    let name: String = task.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
    root.join(format!("task-{name}"))
}

fn write(plan: &FilePlan, data: &PrivateBytes) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&plan.source)?;
    let (owner, group) = plan.owner;
    fchown(&file, Some(owner), Some(group))?;
    // After the owner: changing the owner clears set-id bits.
    file.set_permissions(Permissions::from_mode(plan.permissions))?;
    file.write_all(data.as_slice())
}

fn write_own(file: &OwnFile) -> io::Result<()> {
    fs::write(&file.source, &file.text)?;
    // Whatever the agent's umask: every user of the container reads it.
    fs::set_permissions(&file.source, Permissions::from_mode(0o644))
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io { verb, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// A directory on a tmpfs that every Linux has.
    fn shared_memory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").expect("a directory in /dev/shm")
    }

    fn plan(root: &Path, task: &str, permissions: u32) -> FilePlan {
        FilePlan {
            kind: DependencyKind::Secret,
            id: "s".into(),
            name: "s".to_owned(),
            source: directory(root, &task.into()).join("0"),
            target: "/run/secrets/s".to_owned(),
            owner: (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
            permissions,
        }
    }

    #[test]
    fn files_have_their_modes_and_go_with_their_task() {
        let root = shared_memory();
        let files = TaskFiles::new(root.path().join("tasks"));
        let bytes = [PrivateBytes::new(b"value".to_vec())];
        for (task, permissions) in [("a", 0o440), ("b", 0o444)] {
            // The second attempt replaces what the first one left.
            for _ in 0..2 {
                files
                    .write(&task.into(), &[plan(files.root(), task, permissions)], &bytes, None)
                    .expect("written");
            }
        }
        let of = |task: &str| directory(files.root(), &task.into());
        let mode = |path: &Path| fs::metadata(path).expect("it exists").mode() & 0o7777;
        assert_eq!((mode(&of("a").join("0")), mode(&of("a"))), (0o440, 0o700), "modes of file and directory");
        assert_eq!(fs::read(of("a").join("0")).expect("it is read"), b"value");
        files.remove(&"a".into()).expect("removed");
        files.remove(&"a".into()).expect("and again");
        assert!(!of("a").exists() && of("b").exists(), "only the ended task's files go");
        files.sweep(&BTreeSet::from(["b".into()])).expect("swept");
        assert!(of("b").exists(), "a living task's files stay");
        files.sweep(&BTreeSet::new()).expect("swept");
        assert!(!of("b").exists(), "nobody's files go");
        files.dismantle().expect("dismantled");
        assert!(!files.root().exists(), "nothing is left");
    }

    #[test]
    fn an_id_cannot_leave_the_root() {
        assert_eq!(directory(Path::new("/r"), &"../../etc".into()), Path::new("/r/task-etc"));
    }
}
