//! Listening unix sockets in the file system.
//!
//! Invariants: a socket never has other permissions than its own; a socket that a dead process left
//! is replaced, one that a living process listens on is not.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The permissions of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The file's permissions, such as `0o600`.
    pub mode: u32,
    /// The group that owns the file; `None`: the group of this process.
    pub gid: Option<u32>,
}

/// Listens on `path`. The socket is bound under another name first and renamed.
///
/// # Errors
/// The path is not a socket, a living process listens on it, or the directory can't be written.
pub fn bind(path: &Path, access: Access) -> io::Result<UnixListener> {
    check_free(path)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let fresh = beside(path);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    // Only the owner may connect before the group is set.
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    if access.gid.is_some() {
        chown(&fresh, None, access.gid)?;
    }
    fs::set_permissions(&fresh, Permissions::from_mode(access.mode))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Whether a listener that calls itself `bound` is one that [`bind`] made for `path`: the kernel
/// goes on calling it by the name under which it was bound.
pub fn is_bound_to(bound: &Path, path: &Path) -> bool {
    bound == path || bound == beside(path)
}

fn check_free(path: &Path) -> io::Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let text = format!("{shown} exists and is not a socket: remove it or choose another --socket");
            Err(io::Error::new(ErrorKind::AlreadyExists, text))
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            let text =
                format!("{shown} is in use: stop the process that listens on it or choose another --socket");
            Err(io::Error::new(ErrorKind::AddrInUse, text))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const OWNERS: Access = Access { mode: 0o600, gid: None };

    #[tokio::test]
    async fn a_socket_has_its_mode_and_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/docker.sock");
        let gid = fs::metadata(directory.path()).unwrap().gid();
        let _listener = bind(&path, Access { mode: 0o660, gid: Some(gid) }).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, gid));
        assert!(!beside(&path).exists(), "nothing is left beside it");
    }

    #[tokio::test]
    async fn a_living_listener_is_kept_and_a_dead_ones_socket_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let living = bind(&path, OWNERS).unwrap();
        assert_eq!(bind(&path, OWNERS).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(living);
        drop(bind(&path, OWNERS).expect("the socket has no listener any more"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(bind(&path, OWNERS).unwrap_err().kind(), ErrorKind::AlreadyExists, "not a socket");
    }

    #[tokio::test]
    async fn a_listener_is_known_by_its_path_though_it_was_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let listener = bind(&path, Access { mode: 0o600, gid: None }).unwrap();
        let address = listener.local_addr().unwrap();
        let bound = address.as_pathname().unwrap();
        assert!(is_bound_to(bound, &path), "the kernel calls it {}", bound.display());
        assert!(!is_bound_to(bound, &directory.path().join("other.sock")));
    }
}
