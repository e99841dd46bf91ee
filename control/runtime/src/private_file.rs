//! Files that only this daemon reads, replaced as a whole or not at all.
//!
//! Invariant: a reader sees the old contents or the new ones, whenever the machine stops. Blocks;
//! for small files only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Creates `directory` (mode 0700) and its parents, if they don't exist.
///
/// # Errors
/// An error of the file system.
pub fn create_private_dir(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Replaces `path` (mode 0600) by `contents`, flushed to the disk.
///
/// # Errors
/// An error of the file system; the old file still exists then.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    let (fresh, file) = write_beside(path, contents)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(directory)?.sync_all()
}

/// Replaces `path` (mode 0600) by `contents` without a flush: the file outlives the process, but
/// may be older, or empty, after a power cut. For contents that may be lost in one.
///
/// # Errors
/// An error of the file system; the old file still exists then.
pub fn replace_unflushed(path: &Path, contents: &[u8]) -> io::Result<()> {
    let (fresh, _) = write_beside(path, contents)?;
    fs::rename(&fresh, path)
}

/// Writes `contents` to a new file beside `path`; returns its path and the open file.
fn write_beside(path: &Path, contents: &[u8]) -> io::Result<(PathBuf, File)> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(contents)?;
    Ok((fresh, file))
}

/// The contents of `path`; `None` if there is no such file.
///
/// # Errors
/// An error of the file system, other than the absence of the file.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes `path`, if it exists.
///
/// # Errors
/// An error of the file system, other than the absence of the file.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_private_and_replaced_whole() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("a/b");
        create_private_dir(&directory).expect("the directory is made");
        let path = directory.join("file.json");
        assert_eq!(read(&path).expect("absence is no error"), None);
        replace(&path, b"one").expect("the file is made");
        for (how, contents) in [(replace as fn(&Path, &[u8]) -> _, b"two"), (replace_unflushed, b"six")] {
            how(&path, contents).expect("the file is replaced");
            assert_eq!(read(&path).expect("the file is read").as_deref(), Some(contents.as_slice()));
        }
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&directory)), (0o600, 0o700), "modes of the file and its directory");
        assert_eq!(fs::read_dir(&directory).expect("it is listed").count(), 1, "nothing else is left behind");
    }
}
