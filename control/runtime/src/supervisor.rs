//! Tells systemd that the daemon is ready, alive, or stopping (sd_notify(3)), and gives it sockets
//! to keep. Without systemd, nothing is told.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// How often the watchdog hears from a daemon within its time.
const SIGNS_OF_LIFE: u32 = 3;

/// A component: tells systemd that the daemon is ready once `ready` has ended, then regularly that
/// it is alive, for as long as the event loop runs, and last that it is stopping.
///
/// # Errors
/// None: a message that can't be sent is logged.
pub async fn keep_told(
    ready: impl Future<Output = ()> + Send,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    if stopping.run_until_cancelled(ready).await.is_some() {
        tell(&[NotifyState::Ready]);
        match sd_notify::watchdog_enabled() {
            Some(limit) => feed_watchdog(limit / SIGNS_OF_LIFE, &stopping).await,
            None => stopping.cancelled().await,
        }
    }
    tell(&[NotifyState::Stopping]);
    Ok(())
}

async fn feed_watchdog(period: Duration, stopping: &CancellationToken) {
    let mut ticks = tokio::time::interval(period.max(Duration::from_millis(1)));
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        tell(&[NotifyState::Watchdog]);
    }
}

/// Tells systemd in a few words what the daemon does; `systemctl status` shows them.
pub fn tell_status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(error = crate::error_chain(&error), "can't tell systemd the daemon's state");
    }
}

/// Gives `socket` to systemd's file descriptor store under `name`: systemd passes it to the process
/// that follows this one. `false` if no systemd listens.
///
/// # Errors
/// The message can't be sent.
pub fn store(name: &str, socket: BorrowedFd<'_>) -> io::Result<bool> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(false);
    }
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[socket])?;
    Ok(true)
}
