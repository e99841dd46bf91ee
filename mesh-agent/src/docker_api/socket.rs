//! The listening socket of `docker.sock`: inherited from the supervisor, or bound.
//!
//! Invariants: where a supervisor keeps the listening socket (systemd's socket unit or its file
//! descriptor store), an agent that restarts goes on with the same socket file, so that containers
//! with it bind-mounted, and clients in its backlog, notice nothing; the directory is never
//! removed.

use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_runtime::supervisor;
use mesh_runtime::unix_socket::{self, Access};
use tokio::net::UnixListener;
use tracing::{debug, info, warn};

/// The first file descriptor that a supervisor passes (sd_listen_fds(3)).
const FIRST_PASSED: RawFd = 3;
/// The name of the socket in systemd's file descriptor store.
const STORED_NAME: &str = "docker.sock";
/// The file's mode: owner and group may connect.
const MODE: u32 = 0o660;

/// Opens the socket at `path`: the one that a supervisor passes to this process, else one that is
/// bound there, for `group`.
///
/// # Errors
/// As for [`bind`].
pub fn open(path: &Path, group: &str) -> io::Result<UnixListener> {
    if let Some(passed) = passed(path)? {
        info!(socket = %path.display(), "use the listening socket that the supervisor kept open");
        return Ok(passed);
    }
    let listener = bind(path, group)?;
    match supervisor::store(STORED_NAME, listener.as_fd()) {
        Ok(true) => debug!("the supervisor keeps the socket open"),
        Ok(false) => {}
        Err(error) => {
            warn!(
                error = mesh_runtime::error_chain(&error),
                "can't give the socket to the supervisor: it will be another file after a restart"
            );
        }
    }
    Ok(listener)
}

/// Listens on `path` with mode 0660 and `group` (empty: this process's own), and replaces a socket
/// that a dead agent left.
///
/// # Errors
/// As for [`unix_socket::bind`].
pub fn bind(path: &Path, group: &str) -> io::Result<UnixListener> {
    let gid = gid_of(group, &std::fs::read_to_string("/etc/group").unwrap_or_default());
    if gid.is_none() && !group.is_empty() {
        info!(group, "there is no such group: only its owner can use the socket");
    }
    unix_socket::bind(path, Access { mode: MODE, gid })
}

/// The id of a group, from the contents of `/etc/group`.
fn gid_of(group: &str, groups: &str) -> Option<u32> {
    let mut found = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    });
    if group.is_empty() { None } else { found.next() }
}

/// The listening socket at `path` that a supervisor passed to this process.
fn passed(path: &Path) -> io::Result<Option<UnixListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| std::env::var(name).ok();
    let count = passed_count(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        std::process::id(),
    );
    // They are taken once: a descriptor has one owner.
    if count == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(None);
    }
    let mut found = None;
    for number in FIRST_PASSED..FIRST_PASSED + count {
        // SAFETY: the supervisor opened these descriptors for this process and says so by its
        // process id; nothing else in it knows their numbers, and `TAKEN` lets this happen once.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
        if !rustix::net::sockopt::socket_acceptconn(&descriptor).unwrap_or(false) {
            warn!(number, "the supervisor passed a descriptor that is no listening socket");
            continue;
        }
        let listener = StdListener::from(descriptor);
        let bound = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
        if bound.as_deref().is_some_and(|bound| unix_socket::is_bound_to(bound, path))
            && path.exists()
            && found.is_none()
        {
            listener.set_nonblocking(true)?;
            found = Some(UnixListener::from_std(listener)?);
        } else {
            warn!(number, socket = ?bound, wanted = %path.display(), "the supervisor passed a socket with another path than --socket");
        }
    }
    Ok(found)
}

/// How many descriptors were passed to the process `own`.
fn passed_count(pid: Option<&str>, count: Option<&str>, own: u32) -> RawFd {
    let for_us = pid.and_then(|pid| pid.parse().ok()) == Some(own);
    count.filter(|_| for_us).and_then(|count| count.parse().ok()).unwrap_or(0).clamp(0, 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_taken_only_if_they_are_for_this_process() {
        assert_eq!(passed_count(Some("7"), Some("1"), 7), 1);
        for (pid, count) in
            [(Some("8"), Some("1")), (None, Some("1")), (Some("7"), None), (Some("7"), Some("x"))]
        {
            assert_eq!(passed_count(pid, count, 7), 0, "{pid:?}, {count:?}");
        }
    }

    #[test]
    fn a_group_is_found_by_its_name() {
        let groups = "root:x:0:\ndocker:x:998:a,b\ndocker2:x:5:\n";
        assert_eq!(gid_of("docker", groups), Some(998));
        assert_eq!(gid_of("nobody", groups), None);
        assert_eq!(gid_of("", ":x:4:\n"), None);
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_and_group() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/docker.sock");
        let first = bind(&path, "root").unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, MODE);
        drop(first);
        drop(bind(&path, "no-such-group").unwrap());
    }
}
