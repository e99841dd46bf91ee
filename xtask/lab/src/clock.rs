//! A clock that a lab can set: agents and control planes run with Debian's libfaketime, which adds
//! the offset in a file to the time.
//!
//! etcd, the engines and the tasks keep the machine's time, and so does every measurement of
//! durations (`CLOCK_MONOTONIC`): only calendar time moves.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::Layout;

/// The path of the clock's file in a lab.
pub(super) fn file(layout: &Layout) -> PathBuf {
    layout.state_dir().join("clock")
}

/// Sets the clock.
pub(super) fn set(file: &Path, ahead: Duration) -> Result<()> {
    let fresh = file.with_extension("new");
    fs::write(&fresh, format!("+{}\n", ahead.as_secs()))
        .and_then(|()| fs::rename(&fresh, file))
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
