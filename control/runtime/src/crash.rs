//! What a panic does to a daemon: the process ends, whichever thread or task panicked, in every
//! build profile.
//!
//! Without this, tokio keeps a panic to the task that it happened in, and a release build unwinds:
//! locks stay poisoned, a lease is prolonged and `/readyz` stays good on behalf of a part that is
//! dead. The hook runs before anything is unwound, so no other thread ever sees a poisoned lock or
//! a half-made change of shared state.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::thread;
use std::time::Duration;

/// The exit code of a process that panicked, the same as that of a Rust program whose main thread
/// panics.
pub const EXIT_CODE: i32 = 101;

/// How long telling of the panic may take. Standard error may be a pipe that nobody reads.
const TELL_LIMIT: Duration = Duration::from_millis(500);

/// From now on a panic in any thread is told on standard error and in the log, and ends the process
/// with [`EXIT_CODE`].
///
/// The process exits instead of aborting, so that a core dump doesn't write keys and secrets to a
/// disk; it aborts only if it can't tell of the panic within half a second.
pub fn end_the_process_on_panic() {
    panic::set_hook(Box::new(|panic| {
        let last_resort = thread::Builder::new().name("panic-limit".to_owned()).spawn(|| {
            thread::sleep(TELL_LIMIT);
            std::process::abort();
        });
        // Without a thread for the limit nothing guards what may block: end at once.
        if last_resort.is_ok() {
            tell(panic);
        }
        std::process::exit(EXIT_CODE);
    }));
}

fn tell(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let message = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    // First without the log, which may be what panicked.
    eprintln!("thread {name} panicked at {place}: {message}");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        eprintln!("{backtrace}");
    }
    tracing::error!(thread = name, place, message, "a part panicked: the process ends, to be started again");
}
