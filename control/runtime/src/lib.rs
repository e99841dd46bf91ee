//! mesh-runtime: how mesh's daemons live and end. mesh-agent and mesh-control both run on it.
//!
//! Invariants: a daemon never goes on without one of its parts. A part that panics ends the process at once ([`crash`]); a part that
//! returns while nobody asked it to makes the others stop, and then ends the process with an error ([`Components`]). Starting the
//! daemon again is its supervisor's task, such as systemd's.

pub mod components;
pub mod crash;
pub mod faults;

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;

pub use components::{Components, follow_signals};

/// How long blocking work that still runs may keep a daemon that has ended.
const LEFTOVERS_LIMIT: Duration = Duration::from_millis(300);

/// Runs a daemon: installs the panic policy, then runs `daemon` on a multi-threaded runtime until it ends.
///
/// Blocking work that is still running then is not waited for: a thread that hangs in a system call must not keep a process whose
/// parts have ended.
///
/// # Errors
/// The runtime can't be made, or the daemon's own error.
pub fn run(daemon: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    crash::end_the_process_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let end = runtime.block_on(daemon);
    runtime.shutdown_timeout(LEFTOVERS_LIMIT);
    end
}
