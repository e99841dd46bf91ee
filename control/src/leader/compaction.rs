//! Compacts etcd: the leader drops revisions that are older than some minutes.
//!
//! Invariant: revisions younger than [`KEPT`] stay, so that a watch that was lost for a shorter
//! time can resume.
//!
//! Left to others: defragmentation (an operator's `etcdctl defrag`, member by member; it stops a
//! member while it runs).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mesh_state::store::Store;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::feed::watch::Feed;
use crate::leader::election::Leadership;

/// How long revisions are kept.
const KEPT: Duration = Duration::from_mins(10);
/// How often the newest revision is noted, and an old one compacted to.
const PERIOD: Duration = Duration::from_mins(1);

/// Revisions with the time at which each was the newest, oldest first.
#[derive(Debug, Default)]
struct Noted(VecDeque<(Instant, i64)>);

impl Noted {
    /// Notes the newest revision; returns the one to compact to, if one is old enough.
    fn note(&mut self, now: Instant, revision: i64) -> Option<i64> {
        self.0.push_back((now, revision));
        let mut old = None;
        while let Some((noted_at, noted)) = self.0.front()
            && now.duration_since(*noted_at) >= KEPT
        {
            old = Some(*noted);
            self.0.pop_front();
        }
        old
    }
}

/// Compacts while this manager leads, until `shutdown`.
pub async fn run(
    store: Arc<dyn Store>,
    feed: Feed,
    leadership: watch::Receiver<Option<Leadership>>,
    shutdown: CancellationToken,
) {
    let mut noted = Noted::default();
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let revision = feed.snapshot().revision;
        let Some(old) = noted.note(Instant::now(), revision) else { continue };
        if leadership.borrow().is_none() {
            continue;
        }
        match store.compact(old).await {
            Ok(()) => debug!(revision = old, "compacted etcd's history"),
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "compact etcd's history; tried again later");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_revisions_that_are_old_enough_are_compacted() {
        let (mut noted, start) = (Noted::default(), Instant::now());
        let minute = Duration::from_mins(1);
        for number in 0..10_u32 {
            assert_eq!(
                noted.note(start + minute * number, i64::from(number) * 100),
                None,
                "after {number} minutes"
            );
        }
        assert_eq!(noted.note(start + minute * 10, 1000), Some(0));
        assert_eq!(noted.note(start + minute * 12, 1200), Some(200), "the newest that is old enough");
    }
}
