//! Reads a daemon's settings again, on SIGHUP, and applies those that can change while it runs.
//!
//! Invariants: settings with a mistake change nothing, the daemon goes on with those that it has; a
//! change that needs a restart is named each time, until it is taken back or the daemon restarts.

use std::fmt;

use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::log;
use crate::settings::{Change, Values};

/// The keys of settings that can change while a daemon runs.
const LIVE: [&str; 1] = ["log"];

/// Reads the settings again as they were read at the start: from the same command line, variables
/// and file.
pub struct Reloader {
    in_force: Values,
    read: Box<dyn Fn() -> anyhow::Result<Values> + Send>,
    reloads: watch::Sender<u64>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("in_force", &self.in_force).finish_non_exhaustive()
    }
}

impl Reloader {
    /// A reloader of a daemon with these values `in_force`; `read` reads and checks new ones.
    pub fn new(in_force: Values, read: impl Fn() -> anyhow::Result<Values> + Send + 'static) -> Self {
        Self { in_force, read: Box::new(read), reloads: watch::Sender::new(0) }
    }

    /// Changes after each reload of good settings, for what reads further files then.
    pub fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.subscribe()
    }

    /// Reads the settings again, applies what it can, and logs what it did. Blocks.
    pub fn reload(&mut self) {
        match self.apply() {
            Ok(change) => {
                let applied = change.applied.join(", ");
                info!(applied, "the settings were read again");
                self.reloads.send_modify(|count| *count += 1);
                if !change.needs_restart.is_empty() {
                    let settings = change.needs_restart.join(", ");
                    warn!(settings, "these settings have changed and apply after a restart only");
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                error!(error, "the settings can't be used: those from before stay in force");
            }
        }
    }

    fn apply(&mut self) -> anyhow::Result<Change> {
        let read = (self.read)()?;
        let change = self.in_force.change(&read, &LIVE);
        if change.applied.iter().any(|key| key == "log")
            && let Some(level) = read.text("log")
        {
            log::set(level)?;
        }
        self.in_force.take(&read, &change.applied);
        Ok(change)
    }
}
