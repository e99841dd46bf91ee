//! Clocks that a lab can set: a node's agent and control plane run with Debian's libfaketime, which
//! adds the offset in the node's file to the time.
//!
//! etcd, the engines and the tasks keep the machine's time, and so does every measurement of
//! durations (`CLOCK_MONOTONIC`): only calendar time moves.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layout::Layout;

/// The directory of a lab's clocks.
pub(super) fn directory(layout: &Layout) -> PathBuf {
    layout.state_dir().join("clocks")
}

/// Sets a node's clock this many seconds ahead of the machine's, or behind it if it is negative.
pub(super) fn set(directory: &Path, node: &str, seconds: i64) -> Result<()> {
    let file = directory.join(node);
    let fresh = file.with_extension("new");
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&fresh, format!("{seconds:+}\n")))
        .and_then(|()| fs::rename(&fresh, &file))
        .with_context(|| format!("write {}", file.display()))
}

/// The arguments of `env` that make a program take the time from `file`, to be put before its own
/// command line.
pub(super) fn variables(file: &Path) -> Vec<OsString> {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
    let mut timestamps = OsString::from("FAKETIME_TIMESTAMP_FILE=");
    timestamps.push(file);
    let preload = OsString::from(format!("LD_PRELOAD={library}"));
    let others = ["FAKETIME_CACHE_DURATION=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"];
    [preload, timestamps].into_iter().chain(others.map(OsString::from)).collect()
}
