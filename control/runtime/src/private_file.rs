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
    let (fresh, file) = write_beside(path, contents)?;
    file.sync_all()?;
    rename(&fresh, path)
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

/// Makes `path` (mode 0600) with `contents`, flushed to the disk.
///
/// # Errors
/// The file exists, or another error of the file system; there is no file with a part of the
/// contents then.
pub fn create(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".part");
    let fresh = PathBuf::from(fresh);
    write_new(&fresh, contents)?.sync_all()?;
    // Unlike a rename, a link replaces no file.
    let linked = fs::hard_link(&fresh, path);
    remove_one(&fresh)?;
    linked?;
    sync_directory_of(path)
}

/// Renames `from` to `to`, in the same directory, and flushes that to the disk.
///
/// # Errors
/// An error of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory_of(to)
}

/// Flushes the names in the directory of `path` to the disk.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    File::open(directory)?.sync_all()
}

/// Where the new contents of `path` are until they are whole.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Writes `contents` to a new file beside `path`; returns its path and the open file.
fn write_beside(path: &Path, contents: &[u8]) -> io::Result<(PathBuf, File)> {
    let fresh = beside(path);
    let file = write_new(&fresh, contents)?;
    Ok((fresh, file))
}

/// Writes `contents` to `path`. A file that an earlier attempt left there is removed first: it
/// could have another mode.
fn write_new(path: &Path, contents: &[u8]) -> io::Result<File> {
    remove_one(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    Ok(file)
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

/// Removes `path`, and what an interrupted [`replace`] left beside it, if they exist.
///
/// # Errors
/// An error of the file system, other than the absence of the files.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_one(path)?;
    remove_one(&beside(path))
}

fn remove_one(path: &Path) -> io::Result<()> {
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
        let left = directory.join("file.new");
        fs::write(&left, "left by a process that was killed").expect("a file is left");
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).expect("others may read it");
        replace(&path, b"three").expect("the file is replaced");
        assert_eq!(mode(&path), 0o600, "the mode of what was left beside it");
        fs::write(&left, "left by a process that was killed").expect("a file is left");
        remove(&path).expect("both files are removed");
        remove(&path).expect("absence is no error");
        assert_eq!(fs::read_dir(&directory).expect("it is listed").count(), 0, "half a file is left behind");
    }

    #[test]
    fn a_file_is_made_once_and_whole() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("key.new");
        fs::write(root.path().join("key.new.part"), "left by a process that was killed").expect("a part");
        create(&path, b"one").expect("the file is made");
        let refused = create(&path, b"two").expect_err("the file exists").kind();
        assert_eq!(refused, io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).expect("the file is read").as_deref(), Some(b"one".as_slice()));
        assert_eq!(fs::read_dir(root.path()).expect("it is listed").count(), 1, "a part was left behind");
        let mode = fs::metadata(&path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }
}
