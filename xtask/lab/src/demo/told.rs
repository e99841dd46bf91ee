//! Prints the demo's output.

use std::sync::atomic::{AtomicU32, Ordering};

static STEPS: AtomicU32 = AtomicU32::new(0);

/// Prints a new step's heading.
pub(super) fn step(heading: &str) {
    let number = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
    println!("\n{number:>2}. {heading}");
}

/// Prints a command as a user would type it.
pub(super) fn typed(command: &str) {
    println!("    $ {command}");
}

/// Prints what was seen, indented.
pub(super) fn seen(text: &str) {
    for line in text.trim_end().lines() {
        println!("      {line}");
    }
}
