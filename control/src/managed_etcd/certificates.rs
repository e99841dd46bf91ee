//! The certificates of the child and of this manager as its client, with their keys: in memory
//! only, and made anew at each start. etcd reads its files again for each connection, and so does
//! the client, so a new certificate needs no restart. Blocks.
//!
//! Invariant: keys are written to a directory on a tmpfs or nowhere.

use std::fs::{self, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use chrono::{DateTime, Utc};
use mesh_etcd_pki::{CLIENT_FILE, EtcdAuthority, PkiError};
use mesh_runtime::private_file;
use rustix::fs::{FsWord, statfs};
use x509_parser::pem::parse_x509_pem;

/// The name of the member's files, without extension.
pub(super) const MEMBER_FILE: &str = "member";
/// The validity of a certificate, in days.
const DAYS: u64 = 90;
/// `f_type` of tmpfs (statfs(2)).
const TMPFS: FsWord = 0x0102_1994;
/// `f_type` of ramfs, which is never swapped out either.
const RAMFS: FsWord = 0x8584_58f6;

/// Makes `directory` for this process's user alone. Returns whether it is in memory.
pub(super) fn make_directory(directory: &Path) -> io::Result<bool> {
    private_file::create_private_dir(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    Ok([TMPFS, RAMFS].contains(&statfs(directory)?.f_type))
}

/// Removes the certificates and their keys from `directory`, and the directory if nothing else is
/// in it.
pub(super) fn clear(directory: &Path) -> io::Result<()> {
    for name in [MEMBER_FILE, CLIENT_FILE] {
        for extension in ["key", "pem", "key.new", "pem.new"] {
            private_file::remove(&directory.join(format!("{name}.{extension}")))?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty].contains(&error.kind()) => {
            Ok(())
        }
        removed => removed,
    }
}

/// Makes each certificate that is missing from `directory`, past half of its life, or not valid
/// yet.
pub(super) fn refresh(
    authority: &EtcdAuthority,
    directory: &Path,
    advertise: IpAddr,
    now: DateTime<Utc>,
) -> Result<(), PkiError> {
    if is_due(directory, MEMBER_FILE, now) {
        authority.issue_member(&[advertise.to_string()], DAYS, now)?.write(directory, MEMBER_FILE)?;
    }
    if is_due(directory, CLIENT_FILE, now) {
        authority.issue_client(DAYS, now)?.write(directory, CLIENT_FILE)?;
    }
    Ok(())
}

/// Whether a certificate must be made anew: one that can't be read counts as missing. One that is
/// not valid yet was made before the machine's clock was set.
fn is_due(directory: &Path, name: &str, now: DateTime<Utc>) -> bool {
    let pem = fs::read(directory.join(format!("{name}.pem"))).ok();
    let key = directory.join(format!("{name}.key")).exists();
    let validity = pem.and_then(|pem| {
        let (_, pem) = parse_x509_pem(&pem).ok()?;
        let certificate = pem.parse_x509().ok()?;
        Some((certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp()))
    });
    match validity {
        Some((since, until)) => {
            let now = now.timestamp();
            !key || now < since || now >= since + (until - since) / 2
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use chrono::Days;

    use super::*;

    #[test]
    fn certificates_are_renewed_at_half_of_their_life() {
        let directory = tempfile::tempdir().unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let (authority, _) = EtcdAuthority::create(now).unwrap();
        let read = || fs::read_to_string(directory.path().join("member.pem")).unwrap();
        let at = |now| refresh(&authority, directory.path(), [10, 0, 0, 1].into(), now).unwrap();
        at(now);
        let first = read();
        at(now + Days::new(30));
        assert_eq!(read(), first, "a young certificate stays");
        at(now + Days::new(50));
        let second = read();
        assert_ne!(second, first, "an old one is replaced");
        fs::remove_file(directory.path().join("member.key")).unwrap();
        at(now + Days::new(51));
        let third = read();
        assert_ne!(third, second, "a certificate without its key is useless");
        at(now - Days::new(365));
        assert_ne!(read(), third, "one that was made by a clock that was ahead");
    }

    #[test]
    fn keys_are_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("etcd");
        clear(&directory).unwrap();
        make_directory(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let (authority, _) = EtcdAuthority::create(now).unwrap();
        let write = || refresh(&authority, &directory, [10, 0, 0, 1].into(), now).unwrap();
        write();
        clear(&directory).unwrap();
        assert!(!directory.exists(), "an empty directory stays");
        make_directory(&directory).unwrap();
        write();
        fs::write(directory.join("other"), "an operator's").unwrap();
        clear(&directory).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "a key stays, or another's file is gone");
    }

    #[test]
    fn a_directory_in_memory_is_known() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(make_directory(&memory.path().join("etcd")).unwrap(), "/dev/shm is a tmpfs");
        let file_system = |path: &str| statfs(path).map(|found| found.f_type).unwrap();
        assert!(![TMPFS, RAMFS].contains(&file_system("/proc")), "/proc counts as memory");
    }
}
