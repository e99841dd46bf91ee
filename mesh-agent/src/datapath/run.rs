//! Drives the data plane: on every new view, on every change of the node's network, and
//! periodically.
//!
//! Invariants: views are applied in order, the newest one wins; a failure is logged, counted and
//! retried, and what was in force stays in force; shutting down leaves everything attached.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::Datapath;
use super::error::DatapathError;
use super::lock::lock;
use super::network::monitor::Monitor;
use crate::view::NodeView;
use mesh_runtime::error_chain;

/// The shortest interval between reads of the neighbour table, used after a member node's MAC was
/// found missing; it doubles up to the maximum.
const NEIGHBOURS_MIN: Duration = Duration::from_millis(50);
const NEIGHBOURS_MAX: Duration = Duration::from_secs(2);
/// How often loads, health and slow-start weights are handled.
const PULSE_PERIOD: Duration = Duration::from_secs(1);
/// How often the host's settings are checked, and how many checks make one of those that need a
/// process.
const HOST_PERIOD: Duration = Duration::from_secs(2);
const THOROUGH_LOOK: u64 = 3;
/// How long notifications of network changes are gathered before they are handled.
const NETWORK_SETTLE: Duration = Duration::from_millis(100);
/// Wait after a failure; doubled up to the maximum.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    View,
    Links,
    Neighbours,
    Resync,
}

impl Datapath {
    /// Follows `view` and the node's network until `shutdown`, and publishes in `applied` which
    /// generation is in force.
    pub async fn run(
        self: Arc<Self>,
        view: watch::Receiver<Arc<NodeView>>,
        applied: watch::Sender<u64>,
        shutdown: CancellationToken,
    ) {
        tokio::join!(
            Arc::clone(&self).follow(view, applied, shutdown.clone()),
            Arc::clone(&self).follow_cables_always(shutdown.clone()),
            Arc::clone(&self).pulse_regularly(shutdown.clone()),
            Arc::clone(&self).look_after_host_regularly(shutdown.clone()),
            self.sweep_regularly(shutdown),
        );
    }

    async fn follow(
        self: Arc<Self>,
        mut view: watch::Receiver<Arc<NodeView>>,
        applied: watch::Sender<u64>,
        shutdown: CancellationToken,
    ) {
        let monitor = Monitor::open(lock(&self.hooks).uses_filters())
            .inspect_err(|error| {
                warn!(
                    error = error_chain(&error),
                    "can't subscribe to network changes: they are found by periodic checks"
                );
            })
            .ok();
        let mut neighbours_wait = NEIGHBOURS_MIN;
        let mut resync = ticks(self.config.resync_period);
        let mut retry = Retry::default();
        let mut work = Work::View;
        loop {
            let newest = view.borrow_and_update().clone();
            match self.perform(work, newest, &applied).await {
                Ok(()) => retry.succeeded(),
                Err(failure) => {
                    error!(error = error_chain(&failure), "the data plane is behind: trying again");
                    retry.failed();
                }
            }
            neighbours_wait = match work {
                Work::View | Work::Links if self.lacks_neighbours() => NEIGHBOURS_MIN,
                _ if self.lacks_neighbours() => (neighbours_wait * 2).min(NEIGHBOURS_MAX),
                _ => NEIGHBOURS_MAX,
            };
            work = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = view.changed() => match changed {
                    Ok(()) => Work::View,
                    Err(_) => return,
                },
                () = noticed(monitor.as_ref()) => Work::Links,
                () = retry.due() => Work::Links,
                () = sleep(neighbours_wait) => Work::Neighbours,
                _ = resync.tick() => Work::Resync,
            };
        }
    }

    /// Applies the newest view, then does one piece of work.
    async fn perform(
        self: &Arc<Self>,
        work: Work,
        view: Arc<NodeView>,
        applied: &watch::Sender<u64>,
    ) -> Result<(), DatapathError> {
        let generation = self.off_runtime(move |datapath| datapath.apply(view)).await?;
        applied.send_if_modified(|present| std::mem::replace(present, generation) != generation);
        self.off_runtime(move |datapath| match work {
            Work::View | Work::Neighbours => datapath.refresh_neighbours(),
            Work::Links => datapath.refresh_links(),
            Work::Resync => datapath.refresh_links().and_then(|_| datapath.resync()),
        })
        .await
        .map(drop)
    }

    async fn pulse_regularly(self: Arc<Self>, shutdown: CancellationToken) {
        let mut period = ticks(PULSE_PERIOD);
        let mut last = std::time::Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = period.tick() => {}
            }
            let since = std::mem::replace(&mut last, std::time::Instant::now());
            if let Err(failure) = self.off_runtime(move |datapath| datapath.pulse(since)).await {
                error!(error = error_chain(&failure), "can't follow loads and health: trying again");
            }
        }
    }

    async fn look_after_host_regularly(self: Arc<Self>, shutdown: CancellationToken) {
        let mut period = ticks(HOST_PERIOD);
        for look in 1.. {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = period.tick() => {}
            }
            let thoroughly = look % THOROUGH_LOOK == 0;
            if let Err(failure) = self
                .off_runtime(move |datapath| {
                    datapath.look_after_host(thoroughly);
                    Ok(())
                })
                .await
            {
                error!(error = error_chain(&failure), "can't check the host's settings: trying again");
            }
        }
    }

    async fn sweep_regularly(self: Arc<Self>, shutdown: CancellationToken) {
        let mut period = ticks(self.config.sweep_period);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.sweep_now.notified() => {}
                _ = period.tick() => {}
            }
            if let Err(failure) = self.off_runtime(Self::sweep).await {
                error!(error = error_chain(&failure), "can't sweep the flow tables: trying again");
            }
        }
    }

    pub(super) async fn off_runtime<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, DatapathError> + Send + 'static,
    ) -> Result<T, DatapathError> {
        let datapath = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&datapath)).await;
        done.unwrap_or(Err(DatapathError::Interrupted))
    }
}

/// Completes a moment after the network's first notification, so that a burst is handled once;
/// never without a monitor.
async fn noticed(monitor: Option<&Monitor>) {
    let Some(monitor) = monitor else { return std::future::pending().await };
    if let Err(error) = monitor.changed().await {
        warn!(error = error_chain(&error), "the subscription to network changes failed");
    }
    sleep(NETWORK_SETTLE).await;
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// When to try again after a failure.
#[derive(Debug, Default)]
struct Retry {
    wait: Option<Duration>,
    at: Option<Instant>,
}

impl Retry {
    fn succeeded(&mut self) {
        *self = Self::default();
    }

    fn failed(&mut self) {
        let wait = self.wait.map_or(RETRY_MIN, |wait| (wait * 2).min(RETRY_MAX));
        *self = Self { wait: Some(wait), at: Some(Instant::now() + wait) };
    }

    /// Completes when the time has come; never if nothing failed.
    async fn due(&self) {
        match self.at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_the_maximum_and_start_anew_after_a_success() {
        let mut retry = Retry::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            retry.failed();
            let before = Instant::now();
            retry.due().await;
            waits.push(before.elapsed().as_millis());
        }
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        retry.succeeded();
        retry.failed();
        assert_eq!(retry.wait, Some(RETRY_MIN), "first wait after a success");
    }
}
