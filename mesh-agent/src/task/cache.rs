//! This node's tasks on its disk: a restarted agent continues from here, with or without a manager.
//!
//! Invariants: one private file per task, replaced as a whole; a file that can't be parsed is
//! skipped, as the containers' labels and the next full list from control restore what it held.
//! Blocks: run it off the async threads.

use std::io;
use std::path::{Path, PathBuf};

use mesh_state::codec;
use mesh_state::ids::TaskId;
use mesh_state::task::{Assignment, TaskStatus};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use mesh_runtime::private_file;

/// One task and its last status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedTask {
    /// The task as control assigned it.
    pub assignment: Assignment,
    /// The status that was last reported.
    pub status: TaskStatus,
}

/// Why the cache could not be used.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The file system refused an operation.
    #[error("{verb} {}", .path.display())]
    Io {
        /// What was done with the file: read, write or remove.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A task can't be encoded.
    #[error("encode task to cache")]
    Encode(#[source] codec::CodecError),
}

/// The directory of cached tasks.
#[derive(Debug, Clone)]
pub struct TaskCache {
    directory: PathBuf,
}

impl TaskCache {
    /// Opens the cache in `directory`, which is made (mode 0700) if it doesn't exist.
    pub fn open(directory: PathBuf) -> Result<Self, CacheError> {
        private_file::create_private_dir(&directory).map_err(|source| CacheError::Io {
            verb: "make directory",
            path: directory.clone(),
            source,
        })?;
        Ok(Self { directory })
    }

    /// Loads every task that can be parsed.
    pub fn load(&self) -> Result<Vec<CachedTask>, CacheError> {
        let failed = |source| CacheError::Io { verb: "list directory", path: self.directory.clone(), source };
        let mut tasks = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read(&path) {
                    Ok(task) => tasks.push(task),
                    Err(error) => {
                        warn!(path = %path.display(), %error, "skip a cached task that can't be loaded");
                    }
                }
            }
        }
        Ok(tasks)
    }

    /// Stores one task.
    pub fn put(&self, task: &CachedTask) -> Result<(), CacheError> {
        let path = self.path(&task.assignment.task.id);
        let bytes = codec::encode(task).map_err(CacheError::Encode)?;
        private_file::replace(&path, &bytes).map_err(|source| CacheError::Io { verb: "write", path, source })
    }

    /// Removes one task; succeeds if it is not there.
    pub fn remove(&self, task: &TaskId) -> Result<(), CacheError> {
        let path = self.path(task);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CacheError::Io { verb: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, task: &TaskId) -> PathBuf {
        // Ids come from control and are alphanumeric; filtering keeps any other id from leaving
        // this directory.
        let name: String = task.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
        self.directory.join(format!("{name}.json"))
    }
}

fn read(path: &Path) -> Result<CachedTask, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    codec::decode(&bytes).map_err(|error| mesh_runtime::error_chain(&error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::task::worker::tests::assignment;

    #[test]
    fn tasks_come_back_and_broken_files_are_passed_over() {
        let root = tempfile::tempdir().expect("a directory");
        let cache = TaskCache::open(root.path().join("tasks")).expect("the cache opens");
        let task = CachedTask { assignment: assignment("t1"), status: TaskStatus::default() };
        cache.put(&task).expect("the task is stored");
        std::fs::write(root.path().join("tasks/broken.json"), "{").expect("a broken file");
        assert_eq!(cache.load().expect("the cache loads"), [task]);
        let mode =
            std::fs::metadata(root.path().join("tasks/t1.json")).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "environments hold secrets");
        cache.remove(&"t1".into()).expect("the task is forgotten");
        cache.remove(&"t1".into()).expect("and may be forgotten twice");
        assert_eq!(cache.load().expect("the cache loads"), []);
    }

    #[test]
    fn an_id_cannot_leave_the_directory() {
        let cache = TaskCache { directory: "/var/tasks".into() };
        assert_eq!(cache.path(&"../../etc/x".into()), Path::new("/var/tasks/etcx.json"));
    }
}
