//! mesh-runtime: what both daemons, mesh-agent and mesh-control, run on: how they start, log, retry
//! and end.
//!
//! What a daemon needs of the operating system for that is here once: supervision and panics,
//! backoff, unix sockets, files that only the daemon reads, and its log.
//!
//! Invariants: a daemon never goes on without one of its parts. A part that panics ends the process
//! at once ([`crash`]); a part that returns while nobody asked it to makes the others stop, and
//! then ends the process with an error ([`Components`]). Starting the daemon again is its
//! supervisor's task, such as systemd's.

pub mod backoff;
pub mod components;
pub mod crash;
mod error_chain;
pub mod faults;
pub mod log;
pub mod private_file;
pub mod unix_socket;

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;

pub use components::{Components, follow_signals};
pub use error_chain::error_chain;

/// How long blocking work that still runs may keep a daemon that has ended.
const LEFTOVERS_LIMIT: Duration = Duration::from_millis(300);

/// Runs a daemon: installs the panic policy, then runs `daemon` on a multi-threaded runtime until
/// it ends.
///
/// Blocking work that is still running then is not waited for: a thread that hangs in a system call
/// must not keep a process whose parts have ended.
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
