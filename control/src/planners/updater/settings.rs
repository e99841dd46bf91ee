//! The settings of an update or a rollback, with Swarm's defaults filled in.

use std::time::Duration;

use mesh_state::service::{Service, UpdateState};
use mesh_state::spec::{FailureAction, UpdateConfig, UpdateOrder};

const DEFAULT_MONITOR: Duration = Duration::from_secs(5);

/// The settings in a service's update or rollback block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Slots updated at a time.
    pub parallelism: usize,
    /// How long a place in the batch rests before it takes its next slot.
    pub delay: Duration,
    /// The reaction to too many failures.
    pub on_failure: FailureAction,
    /// A task that dies within this time after it began to run is a failure of the update.
    pub monitor: Duration,
    /// The share of slots that may fail.
    pub failure_ratio_max: f32,
    /// Whether the old task stops first or the new one starts first.
    pub order: UpdateOrder,
}

impl Settings {
    /// The settings that apply to `service` now: its rollback block's during a rollback, else its
    /// update block's.
    pub fn of(service: &Service) -> Self {
        let state = service.update_status.as_ref().map(|status| status.state);
        let back = state == Some(UpdateState::RollbackStarted);
        let block = if back { &service.spec.rollback_config } else { &service.spec.update_config };
        let config = block.clone().unwrap_or_else(UpdateConfig::swarm_default);
        let nanos =
            |value: Option<i64>| value.and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos);
        Self {
            parallelism: match config.parallelism {
                0 => usize::MAX,
                some => usize::try_from(some).unwrap_or(usize::MAX),
            },
            delay: nanos(config.delay).unwrap_or_default(),
            on_failure: config.failure_action.unwrap_or_default(),
            monitor: nanos(config.monitor).filter(|period| !period.is_zero()).unwrap_or(DEFAULT_MONITOR),
            failure_ratio_max: config.max_failure_ratio,
            order: config.order.unwrap_or_default(),
        }
    }
}
