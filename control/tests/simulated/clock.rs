//! Wall-clock time that follows tokio's, so that paused time drives planners, too.

use std::cell::Cell;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Some moment after the epoch.
const EPOCH_SECONDS: i64 = 1_800_000_000;

/// Starts the clock of this thread's run.
pub(crate) fn start() {
    BEGAN.set(Some(Instant::now()));
}

/// The current time.
pub(crate) fn now() -> DateTime<Utc> {
    let passed =
        BEGAN.get().map_or_else(TimeDelta::zero, |began| TimeDelta::from_std(began.elapsed()).unwrap());
    DateTime::from_timestamp(EPOCH_SECONDS, 0).unwrap() + passed
}
