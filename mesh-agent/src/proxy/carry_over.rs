//! Carries the proxy's counters over a restart of the agent.
//!
//! Why: a scrape adds them to counters in the kernel's maps, which outlive the agent. Prometheus
//! reads a sum that falls as a counter reset, and would count all that the kernel ever counted
//! again.
//!
//! Invariant: a scrape shows the counters as they were last stored on disk, so no counter falls
//! below a value that was shown, however the agent ends. A scrape writes nothing: [`keep`] stores
//! the counters every [`PERIOD`] and when the agent stops. While the disk refuses writes, scrapes
//! show the counters as they are, and `mesh_proxy_counters_kept` is 0.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::{BackendId, ServiceId};
use mesh_state::spec::Protocol;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::ledger::{BackendFigures, FrontendFigures, ProxyStats};
use mesh_runtime::error_chain;
use mesh_runtime::private_file;

const FILE: &str = "proxy-counters.json";
/// How often changed counters are stored, and so how old the proxy's counters in a scrape may be.
/// It is short because storing needs no flush: after a power cut the kernel's counters begin at
/// zero too.
const PERIOD: Duration = Duration::from_secs(2);
/// How often the log repeats that the disk refuses writes.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// Why counters could not be stored or loaded.
#[derive(Debug, Error)]
#[error("access {}", path.display())]
pub struct CarryOverError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The contents of the file.
#[derive(Serialize, Deserialize)]
struct Counters {
    backends: Vec<(BackendId, BackendFigures)>,
    frontends: Vec<(ServiceId, Protocol, u16, FrontendFigures)>,
}

/// The source of the proxy's counters in a scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredCounters {
    /// The counters as they are on disk.
    Yes(Arc<ProxyStats>),
    /// The disk refuses writes: scrapes show the current counters, which the next start may not
    /// know.
    No,
}

impl StoredCounters {
    /// What a scrape shows when the ledger holds `now`: counters as stored, and everything else
    /// (live connections, listeners) as it is.
    pub fn shown(&self, now: ProxyStats) -> ProxyStats {
        let Self::Yes(kept) = self else { return now };
        let backends = now.backends.into_iter().map(|(id, figures)| {
            let kept = kept.backends.get(&id).copied().unwrap_or_default();
            (id, BackendFigures { live: figures.live, ..kept })
        });
        let frontends = now.frontends.into_keys().map(|key| {
            let figures = kept.frontends.get(&key).copied().unwrap_or_default();
            (key, figures)
        });
        ProxyStats { backends: backends.collect(), frontends: frontends.collect(), listeners: now.listeners }
    }
}

/// Stores what `read` returns in `data_dir` every [`PERIOD`] and once more at `shutdown`; publishes
/// in `kept` what scrapes may show.
pub async fn keep(
    data_dir: PathBuf,
    read: impl Fn() -> ProxyStats + Send,
    kept: watch::Sender<StoredCounters>,
    shutdown: CancellationToken,
) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaints = Complaints::default();
    loop {
        let is_last = tokio::select! {
            () = shutdown.cancelled() => true,
            _ = period.tick() => false,
        };
        let now = Arc::new(read());
        let is_kept = matches!(&*kept.borrow(), StoredCounters::Yes(before) if counts_alike(before, &now));
        if !is_kept {
            let (directory, stats) = (data_dir.clone(), Arc::clone(&now));
            let storing = tokio::task::spawn_blocking(move || store(&directory, &stats));
            // A panic in the blocking task ends this future, and with it the agent.
            let Ok(stored) = storing.await else { return };
            complaints.note(stored.as_ref().err(), Instant::now());
            kept.send_replace(if stored.is_ok() { StoredCounters::Yes(now) } else { StoredCounters::No });
        }
        if is_last {
            return;
        }
    }
}

/// Whether all counters are equal; gauges don't matter.
fn counts_alike(before: &ProxyStats, now: &ProxyStats) -> bool {
    let is_alike = |(a, b): ((&BackendId, &BackendFigures), (&BackendId, &BackendFigures))| {
        a.0 == b.0 && *a.1 == BackendFigures { live: a.1.live, ..*b.1 }
    };
    before.frontends == now.frontends
        && before.backends.len() == now.backends.len()
        && before.backends.iter().zip(&now.backends).all(is_alike)
}

/// Logs that the disk refuses writes, at most once in [`COMPLAINT_INTERVAL`], and that it works
/// again.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
}

impl Complaints {
    fn note(&mut self, failure: Option<&CarryOverError>, now: Instant) {
        let Some(failure) = failure else {
            if self.last.take().is_some() {
                tracing::info!("the proxy's counters are kept on disk again");
            }
            return;
        };
        if self.is_due(now) {
            tracing::error!(
                error = error_chain(failure),
                "can't keep the proxy's counters: they fall at the agent's next start"
            );
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.last.is_none_or(|last| now.duration_since(last) >= COMPLAINT_INTERVAL);
        if is_due {
            self.last = Some(now);
        }
        is_due
    }
}

/// Stores the counters of `stats` in `data_dir`. Blocks.
///
/// # Errors
/// The file can't be written.
pub fn store(data_dir: &Path, stats: &ProxyStats) -> Result<(), CarryOverError> {
    let path = data_dir.join(FILE);
    let counters = Counters {
        backends: stats.backends.iter().map(|(id, figures)| (*id, *figures)).collect(),
        frontends: stats
            .frontends
            .iter()
            .map(|((service, protocol, port), figures)| (service.clone(), *protocol, *port, *figures))
            .collect(),
    };
    serde_json::to_vec(&counters)
        .map_err(io::Error::from)
        .and_then(|bytes| private_file::replace_unflushed(&path, &bytes))
        .map_err(|source| CarryOverError { path, source })
}

/// Loads the counters that were stored in `data_dir`; zeros at the first start. Blocks.
///
/// # Errors
/// The file exists and can't be read.
pub fn load(data_dir: &Path) -> Result<ProxyStats, CarryOverError> {
    let path = data_dir.join(FILE);
    let read = || {
        let Some(contents) = private_file::read(&path)? else { return Ok(ProxyStats::default()) };
        let kept: Counters = serde_json::from_slice(&contents)?;
        Ok(ProxyStats {
            backends: kept.backends.into_iter().collect(),
            frontends: kept
                .frontends
                .into_iter()
                .map(|(service, protocol, port, figures)| ((service, protocol, port), figures))
                .collect(),
            ..ProxyStats::default()
        })
    };
    read().map_err(|source| CarryOverError { path: path.clone(), source })
}

/// Removes the counters from `data_dir`, if there are any. Blocks.
///
/// # Errors
/// The file can't be removed.
pub fn remove(data_dir: &Path) -> Result<(), CarryOverError> {
    let path = data_dir.join(FILE);
    private_file::remove(&path).map_err(|source| CarryOverError { path, source })
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Ledger;
    use super::*;

    fn backend() -> BackendId {
        BackendId::new(1).expect("an id")
    }

    #[test]
    fn counters_go_on_where_they_were_and_nothing_is_live() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(load(directory.path()).expect("no file is no error"), ProxyStats::default());
        let id = backend();
        let key = (ServiceId::from("s"), Protocol::Tcp, 80);
        let before = Ledger::default();
        let _live = before.backend(id).open();
        before.frontend(&key).count_opened();
        store(directory.path(), &before.stats()).expect("it is stored");

        let after = Ledger::default();
        after.resume(&load(directory.path()).expect("it is read"));
        let (figures, frontend) = (after.stats().backends[&id], after.stats().frontends[&key]);
        assert_eq!((figures.opened, figures.live, frontend.opened), (1, 0, 1));
        let _next = after.backend(id).open();
        assert_eq!((after.stats().backends[&id].opened, after.backend(id).live()), (2, 1));
    }

    /// A running [`keep`] over a ledger.
    struct Running {
        ledger: Arc<Ledger>,
        kept: watch::Receiver<StoredCounters>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Running {
        fn start(directory: PathBuf) -> Self {
            let ledger = Arc::new(Ledger::default());
            let (sender, kept) = watch::channel(StoredCounters::Yes(Arc::default()));
            let (read, stop) = (Arc::clone(&ledger), CancellationToken::new());
            let task = tokio::spawn(keep(directory, move || read.stats(), sender, stop.clone()));
            Self { ledger, kept, stop, task }
        }

        /// Connections to the backend as a scrape shows them: (opened, live).
        fn shown(&self) -> (u64, u64) {
            let shown = self.kept.borrow().shown(self.ledger.stats());
            shown.backends.get(&backend()).map_or((0, 0), |figures| (figures.opened, figures.live))
        }

        async fn stop(self) {
            self.stop.cancel();
            self.task.await.expect("it ends");
        }
    }

    fn on_disk(directory: &Path) -> u64 {
        load(directory).expect("it is read").backends.get(&backend()).map_or(0, |figures| figures.opened)
    }

    #[tokio::test(start_paused = true)]
    async fn a_scrape_shows_what_is_on_disk_and_a_stop_keeps_the_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut running = Running::start(directory.path().to_owned());
        let _first = running.ledger.backend(backend()).open();
        running.kept.changed().await.expect("it runs");
        assert_eq!((running.shown(), on_disk(directory.path())), ((1, 1), 1));
        let _second = running.ledger.backend(backend()).open();
        assert_eq!(running.shown(), (1, 2), "counted since: live, but not shown before it is on disk");
        running.kept.changed().await.expect("it runs");
        assert_eq!((running.shown(), on_disk(directory.path())), ((2, 2), 2), "after the period");
        let _third = running.ledger.backend(backend()).open();
        running.stop().await;
        assert_eq!(on_disk(directory.path()), 3, "kept at the stop");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_not_changed_is_not_written_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut running = Running::start(directory.path().to_owned());
        let live = running.ledger.backend(backend()).open();
        running.kept.changed().await.expect("it runs");
        std::fs::remove_file(directory.path().join(FILE)).expect("it was written");
        tokio::time::sleep(PERIOD * 3).await;
        assert!(!directory.path().join(FILE).exists(), "nothing was counted");
        drop(live);
        assert_eq!(running.shown(), (1, 0));
        running.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_disk_takes_nothing_the_counters_are_shown_as_they_are() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("later");
        let mut running = Running::start(directory.clone());
        let _first = running.ledger.backend(backend()).open();
        running.kept.wait_for(|kept| *kept == StoredCounters::No).await.expect("it runs on");
        let _second = running.ledger.backend(backend()).open();
        assert_eq!(running.shown(), (2, 2));
        std::fs::create_dir(&directory).expect("the disk is mended");
        running.kept.wait_for(|kept| *kept != StoredCounters::No).await.expect("it runs on");
        assert_eq!((running.shown(), on_disk(&directory)), ((2, 2), 2));
        running.stop().await;
    }

    #[test]
    fn a_disk_that_takes_nothing_is_complained_of_once_a_minute() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        let said = (0..100).filter(|step| complaints.is_due(start + PERIOD * *step)).count();
        assert_eq!(said, 4, "in 200 s");
        complaints.note(None, start);
        assert!(complaints.is_due(start), "the next trouble is said at once");
    }
}
