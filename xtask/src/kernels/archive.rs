//! Writes an initramfs: a cpio archive in the `newc` format, as the kernel unpacks it.

use std::collections::BTreeSet;

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    /// Adds an empty directory, and those above it.
    pub(super) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a file, which may be executed if it `is_program`.
    pub(super) fn file(&mut self, path: &str, is_program: bool, contents: &[u8]) {
        let path = path.trim_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, if is_program { PROGRAM } else { FILE }, (0, 0), contents);
    }

    /// Adds a character device with these numbers.
    pub(super) fn device(&mut self, path: &str, numbers: (u32, u32)) {
        let path = path.trim_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, CHARACTER_DEVICE, numbers, &[]);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0]
            .map(|field| format!("{field:08x}"));
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.concat().bytes());
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mesh_checkout::command::Program;

    use super::*;

    /// Needs Debian's package `busybox-static`; without it, only CI fails.
    #[test]
    fn an_archive_unpacks_to_what_was_put_in() {
        if !Program::new("busybox").arg("true").succeeds() {
            assert!(std::env::var_os("CI").is_none(), "busybox is missing: run `cargo xtask setup`");
            eprintln!("skipped: busybox is missing, run `cargo xtask setup`");
            return;
        }
        let mut archive = Archive::default();
        archive.file("/init", true, b"#!/bin/sh\n");
        archive.file("/a/b/c.txt", false, b"12345");
        archive.directory("/a/empty");
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("archive"), archive.finish()).unwrap();
        let unpack = "busybox cpio -id <archive && ls -lR init a && cat a/b/c.txt";
        let shown = Program::new("sh").args(["-c", unpack]).current_dir(directory.path()).output().unwrap();
        assert!(shown.contains("-rwxr-xr-x") && shown.contains("-rw-r--r--"), "modes: {shown}");
        assert!(shown.contains("empty") && shown.ends_with("12345"), "directories and contents: {shown}");
    }
}
