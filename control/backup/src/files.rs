//! Backups in a directory: their names, their list, and which of them are too many.
//!
//! Invariants: a file is readable by its owner alone and is written as a whole, under another name
//! first; pruning touches files of the named cluster only, and never the newest.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mesh_runtime::private_file;
use mesh_state::ids::ClusterId;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::content::{BYTES_MAX, BackupError, Manifest};
use crate::sealed::{self, HEADER_BYTES_MAX, Passphrase, SealedError};

/// The ending of the files' names.
pub const EXTENSION: &str = "mesh-backup";
/// The most bytes of a file with a passphrase.
const PASSPHRASE_BYTES_MAX: u64 = 4096;

/// Why a file can't be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// The kernel refuses.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read a passphrase.
    #[error("others may read {}: chmod it to 0600", path.display())]
    Open {
        /// The file with the passphrase.
        path: PathBuf,
    },
    /// The passphrase in the file can't be used.
    #[error("the passphrase in {}", path.display())]
    Passphrase {
        /// The file with the passphrase.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SealedError,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { operation, path, source }
}

/// A backup in a directory.
#[derive(Debug)]
pub struct Listed {
    /// Where it lies, as the directory was named.
    pub path: PathBuf,
    /// The size of the file.
    pub bytes: u64,
    /// What it says of itself, or why it is no backup. Without the passphrase nothing says that it
    /// is true.
    pub manifest: Result<Manifest, BackupError>,
}

/// The name of the file of a backup: its cluster and its time, so that names sort by age.
pub fn name_of(manifest: &Manifest) -> String {
    let taken = manifest.taken_at.format("%Y%m%dT%H%M%S%3fZ");
    format!("mesh-{}-{taken}.{EXTENSION}", manifest.cluster)
}

/// Writes a sealed backup to `path`, and makes its directory if there is none. Blocks.
///
/// # Errors
/// [`FileError::Io`]; an older file of this name still exists then.
pub fn write(path: &Path, sealed: &[u8]) -> Result<(), FileError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // Without a directory in it, the name is one in the present directory.
    let path = if directory.is_none() { Path::new(".").join(path) } else { path.to_owned() };
    if let Some(directory) = directory {
        private_file::create_private_dir(directory).map_err(failed("create", directory))?;
    }
    private_file::replace(&path, sealed).map_err(failed("write", &path))
}

/// Reads a sealed backup. Blocks.
///
/// # Errors
/// [`FileError::Io`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(2 * BYTES_MAX).unwrap_or(u64::MAX);
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(failed("read", path))?;
    Ok(bytes)
}

/// The backups in `directory`, the oldest first. Blocks.
///
/// # Errors
/// [`FileError::Io`] if the directory can't be read.
pub fn list(directory: &Path) -> Result<Vec<Listed>, FileError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let path = entry.map_err(failed("list", directory))?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            found.push(look_at(path)?);
        }
    }
    let taken = |one: &Listed| one.manifest.as_ref().ok().map(|manifest| manifest.taken_at);
    found.sort_by(|a, b| (taken(a), &a.path).cmp(&(taken(b), &b.path)));
    Ok(found)
}

/// The beginning of one file. Blocks.
///
/// # Errors
/// [`FileError::Io`].
pub fn look_at(path: PathBuf) -> Result<Listed, FileError> {
    let mut beginning = Vec::new();
    let limit = u64::try_from(2 * HEADER_BYTES_MAX).unwrap_or(u64::MAX);
    let mut file = File::open(&path).map_err(failed("read", &path))?;
    let bytes = file.metadata().map_err(failed("read", &path))?.len();
    file.by_ref().take(limit).read_to_end(&mut beginning).map_err(failed("read", &path))?;
    Ok(Listed { path, bytes, manifest: sealed::manifest(&beginning) })
}

/// The files that are beyond the `keep` newest of `cluster`; of `listed`, which is in the order of
/// [`list`]. The newest is never among them. Pure.
pub fn beyond(listed: &[Listed], cluster: &ClusterId, keep: usize) -> Vec<PathBuf> {
    let own = |one: &&Listed| one.manifest.as_ref().is_ok_and(|manifest| manifest.cluster == *cluster);
    let own: Vec<&Listed> = listed.iter().filter(own).collect();
    let old = own.len().saturating_sub(keep.max(1));
    own.into_iter().take(old).map(|one| one.path.clone()).collect()
}

/// Removes a file. Blocks.
///
/// # Errors
/// [`FileError::Io`].
pub fn remove(path: &Path) -> Result<(), FileError> {
    private_file::remove(path).map_err(failed("remove", path))
}

/// The passphrase in a file that nobody but its owner may read. Blocks.
///
/// # Errors
/// [`FileError`].
pub fn passphrase(path: &Path) -> Result<Passphrase, FileError> {
    let file = File::open(path).map_err(failed("read", path))?;
    let mode = file.metadata().map_err(failed("read", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(FileError::Open { path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(PASSPHRASE_BYTES_MAX).read_to_string(&mut text).map_err(failed("read", path))?;
    Passphrase::of_text(&text).map_err(|source| FileError::Passphrase { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use mesh_state::Timestamp;

    use super::*;
    use crate::content::tests::some;
    use crate::sealed::tests::{CHEAP, passphrase as good};

    #[test]
    fn files_are_private_and_listed_by_age() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("backups");
        let backup = some();
        let sealed = sealed::seal(&backup, &good(), CHEAP).unwrap();
        let path = below.join(name_of(backup.manifest()));
        assert!(path.ends_with("mesh-c1-19700101T000000000Z.mesh-backup"), "{}", path.display());
        write(&path, &sealed).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(below.join("x.mesh-backup"), b"nonsense").unwrap();
        fs::write(below.join("notes.txt"), b"nonsense").unwrap();
        let listed = list(&below).unwrap();
        let good: Vec<bool> = listed.iter().map(|one| one.manifest.is_ok()).collect();
        assert_eq!(good, [false, true], "{listed:?}");
        assert_eq!(read(&path).unwrap(), sealed);
        assert!(matches!(list(&below.join("none")), Err(FileError::Io { .. })));
    }

    #[test]
    fn the_oldest_of_the_cluster_are_beyond_and_the_newest_never_is() {
        let listed = |number: i64, cluster: &str| {
            let taken_at = Timestamp::default() + TimeDelta::seconds(number);
            let manifest = Manifest { cluster: cluster.into(), taken_at, ..some().manifest().clone() };
            Listed { path: number.to_string().into(), bytes: 1, manifest: Ok(manifest) }
        };
        let all = [listed(1, "ours"), listed(2, "theirs"), listed(3, "ours"), listed(4, "ours")];
        let old = |keep: usize| beyond(&all, &"ours".into(), keep);
        assert_eq!(old(2), [PathBuf::from("1")]);
        assert_eq!(old(0), [PathBuf::from("1"), PathBuf::from("3")]);
        assert!(old(9).is_empty());
    }

    #[test]
    fn a_passphrase_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passphrase");
        fs::write(&path, "correct horse\n").unwrap();
        for (mode, good) in [(0o644, false), (0o640, false), (0o600, true), (0o400, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(passphrase(&path).is_ok(), good, "mode {mode:o}");
        }
    }
}
