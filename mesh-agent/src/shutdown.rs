//! Living and dying together: the agent's components, and how all of them end.
//!
//! Invariants: a component that ends while the agent is not stopping is a fault, whatever it returned: the others are told to
//! stop, and the agent's exit code says so. Nothing waits for ever.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::anyhow;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The agent's components.
#[derive(Debug, Clone, Default)]
pub struct Components {
    tracker: TaskTracker,
    root: CancellationToken,
    fault: Arc<OnceLock<String>>,
}

impl Components {
    /// Cancelled when the agent stops.
    pub fn stopping(&self) -> &CancellationToken {
        &self.root
    }

    /// Starts a component. It must end once [`Components::stopping`] is cancelled, and not before.
    pub fn spawn<F>(&self, name: &'static str, component: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (root, fault) = (self.root.clone(), Arc::clone(&self.fault));
        let running = tokio::spawn(component);
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
                "a component failed: the agent stops"
            );
            // The first fault is the one to report; later ones are its consequences.
            let _first = fault.get_or_init(|| format!("{name}: {end:#}"));
            root.cancel();
        });
    }

    /// Waits until the agent is told to stop or a component fails, then for all components.
    ///
    /// # Errors
    /// A component failed, or did not end within `limit`.
    pub async fn wait(self, limit: Duration) -> anyhow::Result<()> {
        self.root.cancelled().await;
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait()).await.is_err() {
            return Err(anyhow!("{} components did not end within {limit:?}", self.tracker.len()));
        }
        match self.fault.get() {
            Some(fault) => Err(anyhow!("{fault}")),
            None => Ok(()),
        }
    }
}

/// Cancels `root` on SIGTERM or SIGINT.
///
/// # Errors
/// The signals can't be listened for.
pub async fn follow_signals(root: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = root.cancelled() => return Ok(()),
    };
    tracing::info!(signal = name, "stop; programs, pins and tasks stay");
    root.cancel();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn all_end_well_when_told_to() {
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
    async fn an_end_error_or_panic_of_one_ends_all_with_a_fault() {
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
    async fn one_that_hangs_is_not_waited_for() {
        let components = Components::default();
        components.spawn("stubborn", std::future::pending());
        components.stopping().cancel();
        assert!(components.wait(LIMIT).await.is_err(), "the limit passes");
    }
}
