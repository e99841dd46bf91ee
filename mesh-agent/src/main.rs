//! mesh-agent, the binary: reads the command line, starts logging and the runtime, and runs the agent.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_agent::cli::{Cli, Command};
use mesh_agent::config::Config;
use mesh_agent::{app, uninstall};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let args = match cli.command {
        None => cli.run,
        Some(Command::Run(args)) => *args,
        Some(Command::Uninstall(args)) => {
            start_log(&args.log)?;
            return mesh_runtime::run(uninstall::run(&args));
        }
    };
    start_log(&args.log)?;
    let config = Config::new(args)?;
    mesh_runtime::run(app::run(config))
}

/// Logs to stderr. Under systemd, which adds the time itself, lines come without it.
fn start_log(level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("--log {level}: expected a level such as info, or module=level pairs"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(mesh_admission::log::bounded_stderr)
        .with_ansi(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
    Ok(())
}
