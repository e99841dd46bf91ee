//! Real pinned maps for tests of this module's private parts.

use std::ops::Deref;

use super::config::TableSizes;
use super::loader;
use super::pins::Pins;

/// The pins of freshly made maps; dropping this removes them.
pub(super) struct Pinned {
    pins: Pins,
    directory: tempfile::TempDir,
}

impl Deref for Pinned {
    type Target = Pins;

    fn deref(&self) -> &Pins {
        &self.pins
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = self.pins.remove() {
            eprintln!("pins left in {}: {error}", self.directory.path().display());
        }
    }
}

/// Makes the maps and pins them; `None` without root, which CI must have.
pub(super) fn pinned(name: &str) -> Option<Pinned> {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "CI must run the privileged tests as root");
    if !is_root {
        eprintln!("skipped: this test needs root");
        return None;
    }
    let directory = tempfile::Builder::new().prefix(name).tempdir().expect("a directory");
    let pins = Pins::new(&directory.path().join("bpf"));
    pins.prepare().expect("a BPF file system");
    loader::make_maps(&pins, TableSizes { half_open: 4096, established: 8192 }).expect("the maps are made");
    Some(Pinned { pins, directory })
}
