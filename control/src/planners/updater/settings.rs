//! How an update or a rollback is to proceed, with Swarm's defaults filled in.

use std::time::Duration;

use mesh_state::service::{Service, UpdateState};
use mesh_state::spec::{FailureAction, UpdateConfig, UpdateOrder};

const DEFAULT_MONITOR: Duration = Duration::from_secs(5);

/// What a service's update block says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Slots at a time.
    pub parallelism: usize,
    /// Pause of each place in the batch before it takes its next slot.
    pub delay: Duration,
    /// What follows too many failures.
    pub on_failure: FailureAction,
    /// A task's death so soon after it ran is the update's failure.
    pub monitor: Duration,
    /// Share of failed slots that is borne.
    pub failure_ratio_max: f32,
    /// Which task goes first.
    pub order: UpdateOrder,
}

impl Settings {
    /// The settings in force for `service`: its rollback block while it is rolled back, else its
    /// update block.
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
