//! Checks the figures of health checks, in Swarm's words.

use mesh_state::spec::HealthConfig;
use serde_json::Value;

use super::SpecError;

/// The shortest interval or timeout of a health check, nanoseconds.
const TIME_MIN: i64 = 1_000_000;

/// Checks a health check's times and counts.
///
/// # Errors
/// The first invalid figure.
pub(super) fn check(health: Option<&HealthConfig>) -> Result<(), SpecError> {
    let Some(health) = health else { return Ok(()) };
    let figure = |name| health.extra.get(name).and_then(Value::as_i64).unwrap_or(0);
    for name in ["Interval", "Timeout", "StartPeriod"] {
        let time = figure(name);
        if time != 0 && time < TIME_MIN {
            return Err(SpecError::HealthTimeTooShort(name));
        }
    }
    if figure("Retries") < 0 { Err(SpecError::HealthRetriesNegative) } else { Ok(()) }
}
