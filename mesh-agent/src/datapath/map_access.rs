//! Access to maps that several parts of the data plane share: per-CPU values, and removals that may
//! find nothing.

use aya::Pod;
use aya::maps::{MapError, PerCpuValues};

use super::error::DatapathError;

/// A zero for every CPU.
pub(super) fn zeros<V: Pod + Default>(map: &'static str) -> Result<PerCpuValues<V>, DatapathError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| DatapathError::MapOperation {
        map,
        operation: "update",
        source,
    })?;
    per_cpu(map, vec![V::default(); cpus])
}

/// A value for every CPU.
pub(super) fn per_cpu<V: Pod>(map: &'static str, values: Vec<V>) -> Result<PerCpuValues<V>, DatapathError> {
    PerCpuValues::try_from(values).map_err(|source| DatapathError::MapOperation {
        map,
        operation: "update",
        source,
    })
}

/// Succeeds if the entry is already gone.
pub(super) fn deleted(map: &'static str, result: Result<(), MapError>) -> Result<(), DatapathError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result.map_err(|error| DatapathError::map(map, "delete", error)),
    }
}
