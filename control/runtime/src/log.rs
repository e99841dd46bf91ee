//! A daemon's log: lines to stderr, each bounded in length.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use mesh_admission::log::bounded_stderr;
use tracing_subscriber::EnvFilter;

/// Of libraries that log what clients send, errors only: a client must not fill the log.
const QUIET: [&str; 1] = ["hickory_proto=error"];

/// Starts logging. Lines have no time where systemd's journal adds it, and colours on a terminal
/// only.
///
/// # Errors
/// `level` is neither a level, such as `info`, nor a list of `module=level` pairs.
pub fn start(level: &str) -> anyhow::Result<()> {
    let mut filter = parse(level)?;
    for directive in QUIET {
        filter = filter.add_directive(directive.parse().with_context(|| format!("keep {directive}"))?);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(bounded_stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
    Ok(())
}

/// Checks a level without starting a log.
///
/// # Errors
/// As for [`start`].
pub fn check(level: &str) -> anyhow::Result<()> {
    parse(level).map(drop)
}

fn parse(level: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(level)
        .with_context(|| format!("--log {level}: expected a level such as info, or module=level pairs"))
}
