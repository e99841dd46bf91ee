//! The locks of the data plane's parts. [`super::engine`] says in which order they are taken.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. Poisoning is ignored: a panic ends the process before another thread can take the lock
/// ([`mesh_runtime::crash`]).
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
