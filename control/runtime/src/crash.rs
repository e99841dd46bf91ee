//! The panic policy: a panic ends the process, whichever thread or task panicked, in every build
//! profile.
//!
//! Without this, tokio confines a panic to the task that it happened in, and a release build
//! unwinds: locks stay poisoned, and a lease is renewed and `/readyz` stays good on behalf of a
//! component that is dead. The hook runs before anything is unwound, so no other thread ever sees a
//! poisoned lock or a half-made change of shared state.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::thread;
use std::time::Duration;

/// The exit code of a process that panicked, the same as that of a Rust program whose main thread
/// panics.
pub const EXIT_CODE: i32 = 101;

/// How long reporting the panic may take. Standard error may be a pipe without a reader.
const TELL_LIMIT: Duration = Duration::from_millis(500);

/// Installs the panic hook: a panic in any thread is reported on standard error and in the log, and
/// ends the process with [`EXIT_CODE`].
///
/// The process exits instead of aborting, so that a core dump doesn't write keys and secrets to a
/// disk; it aborts only if it can't report the panic within half a second.
pub fn end_the_process_on_panic() {
    panic::set_hook(Box::new(|panic| {
        let last_resort = thread::Builder::new().name("panic-limit".to_owned()).spawn(|| {
            thread::sleep(TELL_LIMIT);
            std::process::abort();
        });
        // Without a thread that enforces the limit, reporting could block for ever: exit at once.
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
    // Standard error first: the log may be what panicked.
    eprintln!("thread {name} panicked at {place}: {message}");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        eprintln!("{backtrace}");
    }
    tracing::error!(
        thread = name,
        place,
        message,
        "a component panicked: the process ends, for its supervisor to restart it"
    );
}
