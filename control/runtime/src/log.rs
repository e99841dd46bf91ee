//! A daemon's log: lines to stderr, each bounded in length, of a level that can be changed.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use anyhow::Context as _;
use mesh_admission::log::bounded_stderr;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Of libraries that log what clients send, errors only: a client must not fill the log.
const QUIET: [&str; 1] = ["hickory_proto=error"];

/// Changes what this process logs; it has one log.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging. Lines have no time where systemd's journal adds it, and colours on a terminal
/// only.
///
/// # Errors
/// `level` is neither a level, such as `info`, nor a list of `module=level` pairs.
pub fn start(level: &str) -> anyhow::Result<()> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let _first = FILTER.get_or_init(|| handle);
    let lines = fmt::layer().with_writer(bounded_stderr).with_ansi(std::io::stderr().is_terminal());
    let log = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.with(lines.without_time()).init();
    } else {
        log.with(lines).init();
    }
    Ok(())
}

/// Changes the level of the log that [`start`] started.
///
/// # Errors
/// As for [`start`]; the level stays then. Or there is no log.
pub fn set(level: &str) -> anyhow::Result<()> {
    let filter = filter(level)?;
    FILTER.get().context("the log was not started")?.reload(filter).context("change the log's level")
}

/// Checks a level without starting a log.
///
/// # Errors
/// As for [`start`].
pub fn check(level: &str) -> anyhow::Result<()> {
    parse(level).map(drop)
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    let mut filter = parse(level)?;
    for directive in QUIET {
        filter = filter.add_directive(directive.parse().with_context(|| format!("keep {directive}"))?);
    }
    Ok(filter)
}

fn parse(level: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(level)
        .with_context(|| format!("--log {level}: expected a level such as info, or module=level pairs"))
}
