//! Scheduled backups: the leader saves the cluster to its own directory, and removes old files.
//!
//! Invariants: only the leader makes them; the newest file in the directory says when the next one
//! is due, so a manager that starts again makes none too early; a failure is logged, counted and
//! tried again, and removes nothing.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use mesh_backup::files::{self, FileError, Listed};
use mesh_backup::{Backup, Cost, SealedError, sealed};
use mesh_runtime::error_chain;
use mesh_state::Timestamp;
use mesh_state::ids::ClusterId;
use mesh_state::store::Store;
use prometheus::{IntCounter, IntGauge, Registry};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Backups;
use crate::dump::{DumpError, dump};
use crate::feed::watch::Feed;
use crate::leader::election::Leadership;
use crate::seal::Sealer;

/// How often the leader looks whether a backup is due.
const LOOK_PERIOD: Duration = Duration::from_mins(1);

/// Why a scheduled backup was not made.
#[derive(Debug, Error)]
enum ScheduleError {
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Seal(#[from] SealedError),
    #[error("write the backup")]
    Panicked(#[from] tokio::task::JoinError),
}

/// What is known of the backups that this manager made.
struct Figures {
    last_success: IntGauge,
    bytes: IntGauge,
    failures: IntCounter,
}

impl Figures {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let figures = Self {
            last_success: IntGauge::new(
                "mesh_backup_last_success_timestamp_seconds",
                "When this manager last made a scheduled backup; 0 if it made none since its start.",
            )?,
            bytes: IntGauge::new("mesh_backup_size_bytes", "The size of that backup.")?,
            failures: IntCounter::new(
                "mesh_backup_failures_total",
                "Scheduled backups that this manager could not make; each is tried again.",
            )?,
        };
        registry.register(Box::new(figures.last_success.clone()))?;
        registry.register(Box::new(figures.bytes.clone()))?;
        registry.register(Box::new(figures.failures.clone()))?;
        Ok(figures)
    }
}

/// Makes the scheduled backups.
pub struct Schedule {
    wanted: Backups,
    store: Arc<dyn Store>,
    feed: Feed,
    sealer: Arc<Sealer>,
    manager: String,
    leadership: watch::Receiver<Option<Leadership>>,
    figures: Figures,
}

impl Schedule {
    /// Backups of the cluster in `store`, while the manager `manager` leads.
    ///
    /// # Errors
    /// A family of the same name is already registered.
    pub fn new(
        wanted: Backups,
        (store, feed): (Arc<dyn Store>, Feed),
        sealer: Arc<Sealer>,
        manager: String,
        leadership: watch::Receiver<Option<Leadership>>,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let figures = Figures::register(registry)?;
        Ok(Self { wanted, store, feed, sealer, manager, leadership, figures })
    }

    /// Makes backups until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_PERIOD.min(self.wanted.every));
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            if self.leadership.borrow().is_none() {
                continue;
            }
            let cluster = self.feed.snapshot().cluster.as_ref().map(|cluster| cluster.id.clone());
            let Some(cluster) = cluster else { continue };
            if let Err(error) = self.look(cluster).await {
                self.figures.failures.inc();
                warn!(
                    error = error_chain(&error),
                    "can't make the scheduled backup: tried again in a minute"
                );
            }
        }
    }

    /// Makes a backup if one is due.
    async fn look(&self, cluster: ClusterId) -> Result<(), ScheduleError> {
        let now = Utc::now();
        let directory = self.wanted.directory.clone();
        let listed = tokio::task::spawn_blocking(move || {
            if directory.exists() { files::list(&directory) } else { Ok(Vec::new()) }
        });
        if !is_due(&listed.await??, &cluster, self.wanted.every, now) {
            return Ok(());
        }
        let backup = dump(self.store.as_ref(), &self.sealer, cluster, &self.manager, now).await?;
        let wanted = self.wanted.clone();
        let bytes = tokio::task::spawn_blocking(move || write(&wanted, &backup)).await??;
        self.figures.last_success.set(now.timestamp());
        self.figures.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        Ok(())
    }
}

/// Whether the newest backup of `cluster` is older than `every`. One from the future is of a clock
/// that was wrong, and counts for nothing. Pure.
fn is_due(listed: &[Listed], cluster: &ClusterId, every: Duration, now: Timestamp) -> bool {
    let own = listed.iter().filter_map(|one| one.manifest.as_ref().ok());
    let taken = own.filter(|manifest| manifest.cluster == *cluster).map(|manifest| manifest.taken_at);
    let newest = taken.filter(|taken| *taken <= now).max();
    newest.is_none_or(|newest| (now - newest).to_std().is_ok_and(|age| age >= every))
}

/// Writes the backup, then removes what is beyond those that are kept. Returns its size.
fn write(wanted: &Backups, backup: &Backup) -> Result<usize, ScheduleError> {
    let passphrase = files::passphrase(&wanted.passphrase_file)?;
    let sealed = sealed::seal(backup, &passphrase, Cost::USUAL)?;
    let path = wanted.directory.join(files::name_of(backup.manifest()));
    files::write(&path, &sealed)?;
    info!(path = %path.display(), bytes = sealed.len(), "made the scheduled backup");
    for old in files::beyond(&files::list(&wanted.directory)?, &backup.manifest().cluster, wanted.keep) {
        files::remove(&old)?;
    }
    Ok(sealed.len())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use chrono::TimeDelta;
    use mesh_backup::Manifest;

    use super::*;

    #[test]
    fn a_backup_is_due_when_the_newest_of_the_cluster_is_old() {
        let now = Timestamp::default() + TimeDelta::days(20_000);
        let listed = |cluster: &str, hours: i64| Listed {
            path: PathBuf::new(),
            bytes: 1,
            manifest: Ok(Manifest {
                format: 1,
                cluster: cluster.into(),
                revision: 1,
                mesh: String::new(),
                taken_at: now - TimeDelta::hours(hours),
                manager: String::new(),
                keys: 0,
                sha256: String::new(),
            }),
        };
        let due = |all: &[Listed]| is_due(all, &"ours".into(), Duration::from_hours(12), now);
        assert!(due(&[]), "there is none");
        assert!(!due(&[listed("ours", 30), listed("ours", 11)]), "the newest is young");
        assert!(due(&[listed("ours", 12), listed("theirs", 1)]), "another cluster's is none of ours");
        assert!(due(&[listed("ours", -5)]), "a clock was wrong");
    }
}
