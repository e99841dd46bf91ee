//! What a managed etcd needs besides running: defragmentation when it holds much free space, and
//! the end of its alarm once there is room again. The leader compacts its history already
//! ([`crate::leader`]).
//!
//! Invariants: the plan is pure; a member is defragmented at most once in [`DEFRAGMENT_PERIOD`], as
//! it answers nobody meanwhile.

use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::error_chain;
use mesh_state::store::{EtcdStore, MemberStatus};
use prometheus::{IntGauge, Registry};
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::arguments::QUOTA_BYTES;

/// How often the member is looked at.
const PERIOD: Duration = Duration::from_mins(1);
/// The least time between two defragmentations.
pub const DEFRAGMENT_PERIOD: Duration = Duration::from_hours(6);
/// A database below this is never worth it.
const SMALL_BYTES: u64 = 64 << 20;
/// From this share of the quota on, an operator is warned.
const WARN_SHARE: u64 = 80;

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Give free space back to the file system.
    Defragment,
    /// End the alarm that stops writes.
    Disarm,
    /// Tell the operator that the database nears its quota.
    Warn,
}

/// The gauges of the member, as it was last looked at.
#[derive(Debug, Clone)]
pub struct Figures {
    size: IntGauge,
    in_use: IntGauge,
    no_space: IntGauge,
}

impl Figures {
    /// Registers `mesh_etcd_size_bytes`, `mesh_etcd_in_use_bytes`, `mesh_etcd_quota_bytes` and
    /// `mesh_etcd_no_space`.
    ///
    /// # Errors
    /// A family of the same name is already registered.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let quota = gauge("mesh_etcd_quota_bytes", "The size at which this manager's etcd refuses writes.")?;
        quota.set(as_gauge(QUOTA_BYTES));
        Ok(Self {
            size: gauge("mesh_etcd_size_bytes", "The size of the database of this manager's etcd.")?,
            in_use: gauge("mesh_etcd_in_use_bytes", "What of that size is in use.")?,
            no_space: gauge(
                "mesh_etcd_no_space",
                "Whether this manager's etcd refuses writes because it has no room.",
            )?,
        })
    }

    fn show(&self, status: &MemberStatus) {
        self.size.set(as_gauge(status.size_bytes));
        self.in_use.set(as_gauge(status.in_use_bytes));
        self.no_space.set(i64::from(status.no_space));
    }
}

fn as_gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What to do about a member that has this status. `since_defragmented` is the time since the last
/// one, if this process did one.
pub fn plan(status: &MemberStatus, since_defragmented: Option<Duration>) -> Vec<Step> {
    let mut steps = Vec::new();
    let rested = since_defragmented.is_none_or(|since| since >= DEFRAGMENT_PERIOD);
    let half_free = status.in_use_bytes.saturating_mul(2) < status.size_bytes;
    // An alarm waits for nothing: nobody can write.
    if half_free && (status.no_space || (rested && status.size_bytes > SMALL_BYTES)) {
        steps.push(Step::Defragment);
    }
    let is_near = |bytes: u64| bytes.saturating_mul(100) >= QUOTA_BYTES.saturating_mul(WARN_SHARE);
    if is_near(status.in_use_bytes) {
        steps.push(Step::Warn);
    } else if status.no_space {
        steps.push(Step::Disarm);
    }
    steps
}

/// Looks after the member until `shutdown`, and shows its size. Failures are logged and tried
/// again.
pub async fn run(store: Arc<EtcdStore>, figures: Figures, shutdown: CancellationToken) {
    let mut ticks = interval(PERIOD);
    let mut defragmented: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let status = match store.member_status().await {
            Ok(status) => status,
            Err(error) => {
                warn!(error = %error_chain(&error), "can't read etcd's status");
                continue;
            }
        };
        figures.show(&status);
        for step in plan(&status, defragmented.map(|moment| moment.elapsed())) {
            let done = match step {
                Step::Defragment => {
                    info!(bytes = status.size_bytes, in_use = status.in_use_bytes, "defragment etcd");
                    defragmented = Some(Instant::now());
                    store.defragment().await
                }
                Step::Disarm => {
                    info!("etcd has room again: end its alarm");
                    store.disarm().await
                }
                Step::Warn => {
                    let quota = QUOTA_BYTES;
                    error!(
                        in_use = status.in_use_bytes,
                        quota, "etcd's database is nearly full: remove services, secrets or configs"
                    );
                    Ok(())
                }
            };
            if let Err(error) = done {
                warn!(error = %error_chain(&error), ?step, "etcd's upkeep failed; will try again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn status(size_bytes: u64, in_use_bytes: u64, no_space: bool) -> MemberStatus {
        MemberStatus { size_bytes, in_use_bytes, no_space }
    }

    #[test]
    fn a_database_that_is_half_free_is_defragmented_now_and_then() {
        assert_eq!(plan(&status(GIB, GIB / 4, false), None), [Step::Defragment]);
        assert_eq!(plan(&status(GIB, GIB / 4, false), Some(Duration::from_mins(5))), []);
        assert_eq!(plan(&status(GIB, GIB / 4, false), Some(DEFRAGMENT_PERIOD)), [Step::Defragment]);
        assert_eq!(plan(&status(GIB, GIB / 2 + 1, false), None), [], "little to gain");
        assert_eq!(plan(&status(SMALL_BYTES, 0, false), None), [], "too small to matter");
    }

    #[test]
    fn a_scrape_shows_the_member_and_its_quota() {
        let registry = Registry::new();
        let figures = Figures::register(&registry).unwrap();
        figures.show(&status(2 * GIB, GIB, true));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for (name, value) in
            [("size_bytes", 2 * GIB), ("in_use_bytes", GIB), ("quota_bytes", QUOTA_BYTES), ("no_space", 1)]
        {
            let line = format!("\nmesh_etcd_{name} {value}\n");
            assert!(text.contains(&line), "{line:?} is missing in\n{text}");
        }
    }

    #[test]
    fn an_alarm_ends_once_there_is_room() {
        let recent = Some(Duration::ZERO);
        assert_eq!(plan(&status(4 * GIB, GIB, true), recent), [Step::Defragment, Step::Disarm]);
        assert_eq!(plan(&status(4 * GIB, 4 * GIB, true), recent), [Step::Warn], "no room: it stays");
        assert_eq!(plan(&status(4 * GIB, 3 * GIB, true), None), [Step::Disarm]);
    }
}
