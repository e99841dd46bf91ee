//! The leader's driver: runs the planners and commits what they decide.
//!
//! Invariants: planners run on the leader only, one after the other, each on a snapshot that holds
//! what the ones before it wrote; a change wakes the driver, and so do a moment that a plan asked
//! for and a period, so a missed wake-up costs time and nothing else.
//!
//! Left to others: decisions ([`crate::planners`]) and transactions ([`crate::leader::commit`]).

use std::sync::Arc;
use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::store::Store;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::feed::watch::{Feed, RevisionTimeout};
use crate::leader::commit::{self, CommitError, CommitOutcome};
use crate::leader::election::Leadership;
use crate::leader::metrics::{PassResult, ReconcileMetrics};
use crate::plan::Plan;
use crate::planners::Planner;

/// Changes that follow one another, or the last pass, more closely than this share one pass.
const QUIET: Duration = Duration::from_millis(20);
/// The longest that a change waits for a pass.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The longest time between two passes; a pass runs after it even if nothing has changed.
const PERIOD: Duration = Duration::from_secs(10);
/// The pause after a failure or a conflict, and the shortest between wake-ups that plans ask for.
const RETRY: Duration = Duration::from_millis(200);
/// The deadline for a commit to show in the snapshot.
const SEEN_DEADLINE: Duration = Duration::from_secs(5);

/// Why a planner's plan was not committed.
#[derive(Debug, Error)]
enum PassError {
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    RevisionTimeout(#[from] RevisionTimeout),
}

/// Runs the planners while this manager leads.
pub struct Driver {
    /// The store that plans are committed to.
    pub store: Arc<dyn Store>,
    /// The snapshots that planners decide on.
    pub feed: Feed,
    /// The term that this manager leads in; `None` while it doesn't lead.
    pub leadership: watch::Receiver<Option<Leadership>>,
    /// The planners, in order.
    pub planners: &'static [Planner],
    /// Counts and durations of passes.
    pub metrics: ReconcileMetrics,
    /// The clock that passes are planned by.
    pub clock: fn() -> Timestamp,
}

impl Driver {
    /// Runs the planners in each term of leadership, until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let term = tokio::select! {
                term = self.leadership.wait_for(Option::is_some) => match term {
                    Ok(term) => *term,
                    Err(_) => return,
                },
                () = shutdown.cancelled() => return,
            };
            let Some(term) = term else { continue };
            let mut lost = self.leadership.clone();
            tokio::select! {
                () = self.lead(term) => {}
                _ = lost.wait_for(|now| *now != Some(term)) => info!("stops planning: no longer the leader"),
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Runs passes without end; the caller drops the future when the term ends.
    async fn lead(&self, term: Leadership) {
        let mut snapshots = self.feed.snapshots.clone();
        loop {
            snapshots.mark_unchanged();
            let wake_at = self.pass(term).await;
            let passed = Instant::now();
            let wait = wake_at.map_or(PERIOD, |moment| self.time_until(moment).clamp(RETRY, PERIOD));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // The first change after a pause is planned on at once: most changes come
                    // alone.
                    if passed.elapsed() < QUIET {
                        settle(&mut snapshots).await;
                    }
                }
            }
        }
    }

    fn time_until(&self, moment: Timestamp) -> Duration {
        (moment - (self.clock)()).to_std().unwrap_or(Duration::ZERO)
    }

    /// Runs every planner once. Returns the earliest moment at which a planner wants another pass
    /// though nothing has changed.
    async fn pass(&self, term: Leadership) -> Option<Timestamp> {
        let mut wake_at: Option<Timestamp> = None;
        for planner in self.planners {
            let timer = self.metrics.start(planner.name);
            let now = (self.clock)();
            let plan = (planner.plan)(now, &self.feed.snapshot(), &mut rand::rng());
            let mut moment = plan.wake_at;
            let result = match self.carry_out(planner, &plan, term).await {
                Ok(result) => result,
                Err(error) => {
                    warn!(
                        planner = planner.name,
                        error = &error as &dyn std::error::Error,
                        "carry out a plan"
                    );
                    PassResult::Failed
                }
            };
            if matches!(result, PassResult::Conflict | PassResult::Failed) {
                let again = now + RETRY;
                moment = Some(moment.map_or(again, |moment| moment.min(again)));
            }
            wake_at = wake_at.into_iter().chain(moment).min();
            timer.stop(result);
        }
        wake_at
    }

    async fn carry_out(
        &self,
        planner: &Planner,
        plan: &Plan,
        term: Leadership,
    ) -> Result<PassResult, PassError> {
        if plan.actions.is_empty() {
            return Ok(PassResult::Idle);
        }
        let transactions = commit::transactions(&plan.actions, &self.feed.snapshot(), &term.fence())
            .map_err(CommitError::from)?;
        let outcome = commit::commit(self.store.as_ref(), transactions).await.map_err(CommitError::from)?;
        let CommitOutcome::Committed(revision) = outcome else {
            debug!(planner = planner.name, "the plan conflicts with a newer write: discarded");
            return Ok(PassResult::Conflict);
        };
        for reason in &plan.reasons {
            info!(planner = planner.name, revision, "{reason}");
        }
        self.feed.wait_for_revision(revision, SEEN_DEADLINE).await?;
        Ok(PassResult::Committed)
    }
}

/// Waits until changes pause, but at most [`LONGEST_WAIT`].
async fn settle<T>(changes: &mut watch::Receiver<T>) {
    let latest = Instant::now() + LONGEST_WAIT;
    while Instant::now() < latest {
        let quiet_at = (Instant::now() + QUIET).min(latest);
        match tokio::time::timeout_at(quiet_at, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
