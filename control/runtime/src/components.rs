//! Supervises a daemon's components: they start together and end together.
//!
//! Invariants: a component that ends before the daemon is stopping is a fault, whatever it
//! returned: the others are stopped, and the daemon ends with an error. No wait is unlimited.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::anyhow;
use axum::Router;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::faults::Faults;
use crate::reload::Reloader;

/// How long the other components may take to end after a fault: they may depend on the dead one.
const FAULT_LIMIT: Duration = Duration::from_millis(500);

/// A daemon's components.
#[derive(Debug, Clone, Default)]
pub struct Components {
    tracker: TaskTracker,
    root: CancellationToken,
    fault: Arc<OnceLock<String>>,
    faults: Option<Faults>,
}

impl Components {
    /// No components yet. With `debug_faults` each can be made to panic, see [`crate::faults`].
    pub fn new(debug_faults: bool) -> Self {
        if debug_faults {
            tracing::warn!("--debug-faults: any client of the metrics listener can make this daemon panic");
        }
        Self { faults: debug_faults.then(Faults::default), ..Self::default() }
    }

    /// Components of a phase of the daemon, which end before it does, or with it. A fault of one of
    /// them is the phase's: [`Components::wait`] of the phase returns it.
    #[must_use]
    pub fn phase(&self) -> Self {
        Self { root: self.root.child_token(), faults: self.faults.clone(), ..Self::default() }
    }

    /// Cancelled when the daemon stops.
    pub fn stopping(&self) -> &CancellationToken {
        &self.root
    }

    /// Tracks tasks that components start and that must end before the daemon does.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// The routes that make a component panic; none without `debug_faults`.
    pub fn debug_routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        self.faults.clone().map_or_else(Router::new, Faults::router)
    }

    /// Starts a component. It must end once [`Components::stopping`] is cancelled, and not before.
    pub fn spawn<F>(&self, name: &'static str, component: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (root, fault) = (self.root.clone(), Arc::clone(&self.fault));
        let running = match &self.faults {
            Some(faults) => tokio::spawn(faults.wrap(name, component)),
            None => tokio::spawn(component),
        };
        self.tracker.spawn(async move {
            let end = match running.await {
                Ok(Ok(())) if root.is_cancelled() => return,
                Ok(Ok(())) => anyhow!("it ended by itself"),
                Ok(Err(error)) => error,
                Err(error) => anyhow!(error),
            };
            tracing::error!(
                component = name,
                error = format!("{end:#}"),
                "a component failed: the process ends"
            );
            // The first fault is reported; later ones are its consequences.
            let _first = fault.get_or_init(|| format!("{name}: {end:#}"));
            root.cancel();
        });
    }

    /// Waits until the daemon is stopped or a component fails, then for all components.
    ///
    /// # Errors
    /// A component failed, or did not end within `limit`. After a failure the others have at most
    /// half a second.
    pub async fn wait(self, limit: Duration) -> anyhow::Result<()> {
        self.root.cancelled().await;
        self.tracker.close();
        let limit = if self.fault.get().is_some() { limit.min(FAULT_LIMIT) } else { limit };
        let ended = tokio::time::timeout(limit, self.tracker.wait()).await.is_ok();
        match self.fault.get() {
            Some(fault) => Err(anyhow!("{fault}")),
            None if !ended => Err(anyhow!("{} components did not end within {limit:?}", self.tracker.len())),
            None => Ok(()),
        }
    }
}

/// Cancels `root` on SIGTERM or SIGINT. On SIGHUP, reads the settings again.
///
/// # Errors
/// The signal handlers can't be installed, or reading the settings panicked.
pub async fn follow_signals(root: CancellationToken, mut reloader: Reloader) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let name = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hang_up.recv() => {
                let reloading = tokio::task::spawn_blocking(move || {
                    reloader.reload();
                    reloader
                });
                reloader = reloading.await?;
            }
            () = root.cancelled() => return Ok(()),
        }
    };
    tracing::info!(signal = name, "asked to stop");
    root.cancel();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn all_components_end_when_stopped() {
        let components = Components::default();
        let stopping = components.stopping().clone();
        components.spawn("a", async move {
            stopping.cancelled().await;
            Ok(())
        });
        components.stopping().cancel();
        components.wait(LIMIT).await.expect("a clean end");
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_an_error_or_a_panic_of_one_component_ends_all() {
        type Component = fn() -> anyhow::Result<()>;
        let faults: [(Component, &str); 3] = [
            (|| Ok(()), "by itself"),
            (|| Err(anyhow!("broken")), "broken"),
            (|| std::panic::panic_any("wild"), "panicked"),
        ];
        for (fault, expected) in faults {
            let components = Components::default();
            let stopping = components.stopping().clone();
            components.spawn("healthy", async move {
                stopping.cancelled().await;
                Ok(())
            });
            components.spawn("faulty", async move { fault() });
            let error = components.wait(LIMIT).await.expect_err("a fault").to_string();
            assert!(
                error.contains("faulty") && error.contains(expected),
                "expected the component and {expected:?}, saw: {error}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_fault_a_process_ends_within_a_second_whatever_hangs() {
        let components = Components::default();
        components.spawn("stubborn", std::future::pending());
        components.spawn("faulty", async { Err(anyhow!("broken")) });
        let begun = tokio::time::Instant::now();
        let error = components.wait(LIMIT).await.expect_err("a fault").to_string();
        assert!(error.contains("faulty"), "expected the first fault, saw: {error}");
        assert!(begun.elapsed() <= Duration::from_secs(1), "it took {:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_phase_ends_before_the_daemon_or_with_it() {
        let daemon = Components::default();
        let waiting = |components: &Components| {
            let stopping = components.stopping().clone();
            components.spawn("waiting", async move {
                stopping.cancelled().await;
                Ok(())
            });
        };
        let (first, second, third) = (daemon.phase(), daemon.phase(), daemon.phase());
        for components in [&daemon, &first, &second] {
            waiting(components);
        }
        first.stopping().cancel();
        first.wait(LIMIT).await.expect("a phase ends by itself");
        assert!(!daemon.stopping().is_cancelled(), "the daemon ended with its phase");
        third.spawn("faulty", async { Err(anyhow!("broken")) });
        third.wait(LIMIT).await.expect_err("a fault of the phase");
        daemon.stopping().cancel();
        second.wait(LIMIT).await.expect("a phase ends with the daemon");
        daemon.wait(LIMIT).await.expect("a clean end");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_not_waited_for() {
        let components = Components::default();
        components.spawn("stubborn", std::future::pending());
        components.stopping().cancel();
        assert!(components.wait(LIMIT).await.is_err(), "the limit passes");
    }
}
