//! The CA of a managed etcd on this manager's disk: its certificate (`ca.pem`), and its key sealed
//! with the cluster's key (`ca.key.sealed`). Blocks.
//!
//! Purpose: whoever has the disk of a cluster with autolock makes no certificate for etcd. The
//! cluster's key never changes, so nothing here follows autolock: that wraps the cluster's key.
//!
//! Invariants: the CA's key is written in clear nowhere; it is sealed before an older version's
//! file in clear is removed, so that a manager which is killed meanwhile has it in either form.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use mesh_etcd_pki::{CA_FILE, EtcdAuthority, Issued, PkiError};
use mesh_runtime::private_file;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::seal::{SealError, Sealer};

/// The file of the CA's sealed key.
const SEALED_KEY: &str = "ca.key.sealed";
/// The key in clear, as older versions stored it.
const CLEAR_KEY: &str = "ca.key";
/// What older versions stored beside the CA: keys in clear, and certificates without use now.
const CLEAR_FILES: [&str; 8] = [
    CLEAR_KEY,
    "ca.key.new",
    "member.key",
    "member.key.new",
    "member.pem",
    "client.key",
    "client.key.new",
    "client.pem",
];
/// What the CA's key is sealed for.
const PURPOSE: &str = "the key of etcd's CA";

/// Why the CA can't be used.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// A file can't be read, written or removed.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation that failed.
        operation: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// The key doesn't open with the cluster's key, or can't be sealed.
    #[error("use {}", path.display())]
    Seal {
        /// The file of the sealed key.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SealError,
    },
    /// The CA can't be made, or its files are no CA's.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// Whether there is a CA in `directory`.
pub fn exists(directory: &Path) -> bool {
    certificate_file(directory).exists()
}

/// Opens the CA in `directory`, or makes one if there is none. A key that an older version left in
/// clear is sealed.
///
/// # Errors
/// [`AuthorityError`]
pub fn open(directory: &Path, sealer: &Sealer, now: DateTime<Utc>) -> Result<EtcdAuthority, AuthorityError> {
    let authority = if let Some(ca) = read(directory, sealer)? {
        EtcdAuthority::load(&ca.certificate_pem, &ca.key_pem)?
    } else {
        let (authority, issued) = EtcdAuthority::create(now)?;
        store(directory, &issued, sealer)?;
        authority
    };
    remove_clear_keys(directory)?;
    Ok(authority)
}

/// The CA in `directory`; `None` if there is none.
///
/// # Errors
/// [`AuthorityError`]; [`PkiError::NoKey`] if the certificate is there alone.
pub fn read(directory: &Path, sealer: &Sealer) -> Result<Option<Issued>, AuthorityError> {
    let (certificate, key_file) = (certificate_file(directory), directory.join(SEALED_KEY));
    let Some(certificate_pem) = read_file(&certificate)? else { return Ok(None) };
    let certificate_pem = String::from_utf8_lossy(&certificate_pem).into_owned();
    if let Some(bytes) = read_file(&key_file)? {
        let opened = sealer.open_bytes(PURPOSE, &bytes);
        let key = opened.map_err(|source| AuthorityError::Seal { path: key_file, source })?;
        return Ok(Some(Issued { certificate_pem, key_pem: text(&key) }));
    }
    // So it was stored before keys were sealed.
    let clear = read_file(&directory.join(CLEAR_KEY))?.map(Zeroizing::new);
    let key_pem = text(&clear.ok_or(PkiError::NoKey { certificate })?);
    EtcdAuthority::load(&certificate_pem, &key_pem)?;
    let ca = Issued { certificate_pem, key_pem };
    seal_key(directory, &ca, sealer)?;
    Ok(Some(ca))
}

/// Writes a CA to `directory`, its certificate last.
///
/// # Errors
/// [`AuthorityError`]
pub fn store(directory: &Path, ca: &Issued, sealer: &Sealer) -> Result<(), AuthorityError> {
    seal_key(directory, ca, sealer)?;
    write_file(&certificate_file(directory), ca.certificate_pem.as_bytes())
}

fn seal_key(directory: &Path, ca: &Issued, sealer: &Sealer) -> Result<(), AuthorityError> {
    let path = directory.join(SEALED_KEY);
    let contents = sealer
        .seal_bytes(PURPOSE, ca.key_pem.as_bytes())
        .map_err(|source| AuthorityError::Seal { path: path.clone(), source })?;
    write_file(&path, &contents)
}

/// Removes what an older version, killed or not, wrote to `directory` in clear.
fn remove_clear_keys(directory: &Path) -> Result<(), AuthorityError> {
    for name in CLEAR_FILES {
        let path = directory.join(name);
        private_file::remove(&path).map_err(|source| AuthorityError::File {
            operation: "remove",
            path,
            source,
        })?;
    }
    Ok(())
}

fn certificate_file(directory: &Path) -> PathBuf {
    directory.join(format!("{CA_FILE}.pem"))
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, AuthorityError> {
    let failed = |source| AuthorityError::File { operation: "read", path: path.to_owned(), source };
    private_file::read(path).map_err(failed)
}

fn write_file(path: &Path, contents: &[u8]) -> Result<(), AuthorityError> {
    let failed = |source| AuthorityError::File { operation: "write", path: path.to_owned(), source };
    private_file::replace(path, contents).map_err(failed)
}

fn text(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::KEY_BYTES;

    fn sealer(fill: u8) -> Sealer {
        Sealer::new(&Zeroizing::new([fill; KEY_BYTES]))
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    /// Whether a file in `directory` holds a private key that anybody can read off the disk.
    fn shows_a_key(directory: &Path) -> bool {
        let files = std::fs::read_dir(directory).unwrap().map(|entry| std::fs::read(entry.unwrap().path()));
        files.map(Result::unwrap).any(|bytes| bytes.windows(11).any(|part| part == b"PRIVATE KEY"))
    }

    #[test]
    fn the_key_is_on_the_disk_sealed_only() {
        let directory = tempfile::tempdir().unwrap();
        let made = open(directory.path(), &sealer(1), now()).unwrap();
        assert!(exists(directory.path()) && !shows_a_key(directory.path()));
        let found = open(directory.path(), &sealer(1), now()).unwrap();
        assert_eq!(found.certificate_pem(), made.certificate_pem(), "a second CA was made");
        let refused = open(directory.path(), &sealer(2), now()).map(drop).unwrap_err();
        assert!(matches!(refused, AuthorityError::Seal { .. }), "another cluster's key: {refused:?}");
        std::fs::remove_file(directory.path().join(SEALED_KEY)).unwrap();
        let refused = open(directory.path(), &sealer(1), now()).map(drop).unwrap_err();
        assert!(matches!(refused, AuthorityError::Pki(PkiError::NoKey { .. })), "no key: {refused:?}");
    }

    #[test]
    fn what_an_older_version_left_in_clear_is_sealed() {
        let directory = tempfile::tempdir().unwrap();
        let old = EtcdAuthority::open(directory.path(), now()).unwrap();
        old.issue_member(&[], 1, now()).unwrap().write(directory.path(), "member").unwrap();
        old.issue_client(1, now()).unwrap().write(directory.path(), "client").unwrap();
        let clear = std::fs::read(directory.path().join("ca.key")).unwrap();
        std::fs::write(directory.path().join("ca.key.new"), &clear).unwrap();
        assert!(shows_a_key(directory.path()));
        let found = open(directory.path(), &sealer(1), now()).unwrap();
        assert_eq!(found.certificate_pem(), old.certificate_pem(), "the CA was lost");
        assert!(!shows_a_key(directory.path()), "a key is left in clear");
        // A manager that was killed between the two steps has both forms.
        std::fs::write(directory.path().join("ca.key"), clear).unwrap();
        let again = open(directory.path(), &sealer(1), now()).unwrap();
        assert_eq!(again.certificate_pem(), old.certificate_pem());
        assert!(!shows_a_key(directory.path()), "a key is left in clear after a second start");
    }
}
