//! mesh-runtime: how both daemons, mesh-agent and mesh-control, start, log, retry and end.
//!
//! It holds what a daemon needs of the operating system for that: settings, supervision and panics,
//! backoff, unix sockets, files that only the daemon reads, its heap, and its log.
//!
//! Invariants: a daemon never goes on without one of its components. A component that panics ends
//! the process at once ([`crash`]); one that returns before the daemon is stopping makes the others
//! stop, and then ends the process with an error ([`Components`]). Restarting the daemon is the
//! task of its supervisor, such as systemd.

pub mod backoff;
pub mod components;
pub mod crash;
mod error_chain;
pub mod faults;
pub mod heap;
pub mod log;
pub mod private_file;
pub mod reload;
pub mod settings;
pub mod supervisor;
pub mod unix_socket;

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;

pub use components::{Components, follow_signals};
pub use error_chain::error_chain;

/// How long blocking work may delay the end of the process.
const LEFTOVERS_LIMIT: Duration = Duration::from_millis(300);

/// Runs a daemon: installs the panic policy, then runs `daemon` on a multi-threaded runtime until
/// it ends.
///
/// Blocking work that still runs then is abandoned: a thread that hangs in a system call must not
/// keep a process whose components have ended.
///
/// # Errors
/// The runtime can't be made, or the daemon's own error.
pub fn run(daemon: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    crash::end_the_process_on_panic();
    heap::give_freed_memory_back();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let end = runtime.block_on(daemon);
    runtime.shutdown_timeout(LEFTOVERS_LIMIT);
    end
}
