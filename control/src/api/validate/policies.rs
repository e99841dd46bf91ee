//! Checks the figures of resources, placement and update policies.

use mesh_state::spec::{GenericResource, Placement, Resources, UpdateConfig};

use super::SpecError;
use crate::slots::constraint;

/// The smallest share of a CPU that the engine can enforce, in billionths.
const NANO_CPUS_MIN: i64 = 1_000_000;

/// The smallest memory limit that the engine can enforce, in bytes.
const MEMORY_MIN: i64 = 4 * 1024 * 1024;

/// Checks limits and reservations.
///
/// # Errors
/// The first invalid figure.
pub(crate) fn resources(resources: Option<&Resources>) -> Result<(), SpecError> {
    let Some(resources) = resources else { return Ok(()) };
    let limits = resources.limits.clone().unwrap_or_default();
    let reservations = resources.reservations.clone().unwrap_or_default();
    for nano_cpus in [limits.nano_cpus, reservations.nano_cpus] {
        cpu(nano_cpus.unwrap_or(0))?;
    }
    for bytes in [limits.memory_bytes, reservations.memory_bytes] {
        memory(bytes.unwrap_or(0))?;
    }
    if let Some(pids) = limits.pids.filter(|pids| *pids < 0) {
        return Err(SpecError::PidsNegative(pids));
    }
    for resource in &reservations.generic_resources {
        let can_be_given = match resource {
            GenericResource::Discrete(some) => some.value > 0 && !some.kind.is_empty(),
            GenericResource::Named(one) => !one.kind.is_empty() && !one.value.is_empty(),
        };
        if !can_be_given {
            return Err(SpecError::Generic(format!("{}={}", resource.kind(), resource.value())));
        }
    }
    within("cpu", reservations.nano_cpus, limits.nano_cpus)?;
    within("memory", reservations.memory_bytes, limits.memory_bytes)
}

fn cpu(nano_cpus: i64) -> Result<(), SpecError> {
    if nano_cpus == 0 || nano_cpus >= NANO_CPUS_MIN {
        return Ok(());
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure for a message")]
    let given = format!("{}", nano_cpus as f64 / 1e9);
    Err(SpecError::CpuTooSmall { given, least: "0.001" })
}

fn memory(bytes: i64) -> Result<(), SpecError> {
    if bytes == 0 || bytes >= MEMORY_MIN { Ok(()) } else { Err(SpecError::MemoryTooSmall(bytes)) }
}

/// A limit of zero is no limit.
fn within(resource: &'static str, reserved: Option<i64>, limit: Option<i64>) -> Result<(), SpecError> {
    match (reserved, limit.filter(|limit| *limit > 0)) {
        (Some(reserved), Some(limit)) if reserved > limit => {
            Err(SpecError::ReservationAboveLimit { resource })
        }
        _ => Ok(()),
    }
}

/// Checks that constraints can be parsed.
///
/// # Errors
/// [`SpecError::Constraint`].
pub(crate) fn placement(placement: Option<&Placement>) -> Result<(), SpecError> {
    let constraints = placement.map_or(&[][..], |placement| &placement.constraints);
    constraint::parse_all(constraints)?;
    Ok(())
}

/// Checks the settings of an update or a rollback; `verb` is the word in the flags' names.
///
/// # Errors
/// The first invalid figure.
pub(crate) fn update(verb: &'static str, config: Option<&UpdateConfig>) -> Result<(), SpecError> {
    let Some(config) = config else { return Ok(()) };
    let flag =
        |update: &'static str, rollback: &'static str| if verb == "update" { update } else { rollback };
    if config.delay.is_some_and(|delay| delay < 0) {
        return Err(SpecError::NegativeDuration(flag("update-delay", "rollback-delay")));
    }
    if config.monitor.is_some_and(|monitor| monitor < 0) {
        return Err(SpecError::NegativeDuration(flag("update-monitor", "rollback-monitor")));
    }
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(SpecError::Ratio(flag("update-maxfailureratio", "rollback-maxfailureratio")));
    }
    Ok(())
}
