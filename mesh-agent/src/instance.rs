//! The lock of a data directory: one agent at a time, or one uninstall.
//!
//! Invariant: the lock is the kernel's (`flock`), so it ends with its process however that ends.
//! The file also has the id of the process that holds it, for messages and for `uninstall --stop`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;

/// The lock's file in the data directory.
const FILE: &str = "lock";
/// How long an agent may take to end after its signal; longer than it gives its own parts.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// The pause between two looks at a lock that another process holds.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Why the lock can't be taken.
#[derive(Debug, Error)]
pub(crate) enum InstanceError {
    /// Another process has it.
    #[error(
        "mesh-agent runs with the data directory {} (process {holder}): stop it first, as with systemctl stop mesh-agent",
        directory.display()
    )]
    Held {
        /// The data directory.
        directory: PathBuf,
        /// The process that has the lock, as it wrote itself.
        holder: String,
    },
    /// The process that has it does not end.
    #[error("mesh-agent (process {holder}) still runs {} s after SIGTERM: stop it by hand", STOP_LIMIT.as_secs())]
    Stays {
        /// The process that has the lock.
        holder: String,
    },
    /// The process that has it gets no signal.
    #[error("stop mesh-agent (process {holder})")]
    Signal {
        /// The process that has the lock.
        holder: String,
        /// The kernel's error.
        #[source]
        source: Errno,
    },
    /// The file can't be used.
    #[error("lock {}", path.display())]
    File {
        /// The lock's file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// The lock of a data directory, held until this is dropped.
#[derive(Debug)]
pub(crate) struct Instance {
    file: File,
}

impl Drop for Instance {
    /// Unlocks before the file is closed. A child that another thread has just forked holds a copy
    /// of the descriptor until it executes its program, and the kernel keeps the lock as long as
    /// any copy is open (flock(2)).
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "unlock the data directory");
        }
    }
}

impl Instance {
    /// Takes the lock of `directory`.
    ///
    /// # Errors
    /// [`InstanceError::Held`] while another process has it.
    pub(crate) fn take(directory: &Path) -> Result<Self, InstanceError> {
        let path = directory.join(FILE);
        let broken = |source| InstanceError::File { path: path.clone(), source };
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let mut file = options.open(&path).map_err(broken)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let directory = directory.to_owned();
                return Err(InstanceError::Held { directory, holder: read_holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(broken(source)),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(broken)?;
        Ok(Self { file })
    }

    /// Takes the lock of `directory`, and first ends the agent that has it. There is none to take,
    /// and none to end, where the directory does not exist. Blocks.
    ///
    /// # Errors
    /// The agent gets no signal or doesn't end, or the file can't be used.
    pub(crate) fn take_over(directory: &Path) -> Result<Option<Self>, InstanceError> {
        if !directory.exists() {
            return Ok(None);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        let mut told = String::new();
        loop {
            let holder = match Self::take(directory) {
                Err(InstanceError::Held { holder, .. }) => holder,
                taken => return taken.map(Some),
            };
            if Instant::now() > deadline {
                return Err(InstanceError::Stays { holder });
            }
            // Once each: a supervisor may have started another.
            if holder != told {
                terminate(&holder)?;
                told = holder;
            }
            thread::sleep(LOOK_PAUSE);
        }
    }
}

fn read_holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

fn terminate(holder: &str) -> Result<(), InstanceError> {
    // Between taking the lock and writing its id, a process is unknown: the next look finds it.
    let Some(process) = holder.parse().ok().and_then(Pid::from_raw) else { return Ok(()) };
    match kill_process(process, Signal::TERM) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(source) => Err(InstanceError::Signal { holder: holder.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_lock_is_held_by_one_and_names_its_holder() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Instance::take(directory.path()).expect("nobody has it");
        let refused = Instance::take(directory.path()).expect_err("it is held").to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        drop(Instance::take(directory.path()).expect("it is free again"));
    }

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Instance::take(directory.path()).expect("nobody has it");
        // What a fork in another thread makes.
        let copy = first.file.try_clone().expect("a copy");
        drop(first);
        drop(Instance::take(directory.path()).expect("it is free although a copy is open"));
        drop(copy);
    }

    #[test]
    fn the_process_that_holds_it_is_ended() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE);
        // Holds the lock as an agent does: on a file of its own that has its id.
        let script = "exec 9>>\"$0\"; flock 9; echo $$ > \"$0\"; echo ready; exec sleep 60";
        let mut holder = Command::new("sh")
            .args(["-c", script])
            .arg(&path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut said = [0; 6];
        holder.stdout.take().expect("its output").read_exact(&mut said).expect("it has the lock");
        assert!(matches!(Instance::take(directory.path()), Err(InstanceError::Held { .. })));
        let taken = Instance::take_over(directory.path()).expect("the holder ends");
        assert!(taken.is_some());
        let status = holder.wait().expect("it has ended");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{status}");
    }

    #[test]
    fn without_a_data_directory_there_is_no_agent() {
        let directory = tempfile::tempdir().expect("a directory");
        let absent = Instance::take_over(&directory.path().join("absent")).expect("nothing to end");
        assert!(absent.is_none());
    }
}
