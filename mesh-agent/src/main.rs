//! mesh-agent, the binary: reads the settings, starts logging and the runtime, and runs the agent.

use std::path::Path;
use std::process::ExitCode;

use mesh_agent::cli::{Cli, Command};
use mesh_agent::{app, check, uninstall};
use mesh_runtime::reload::Reloader;
use mesh_runtime::{heap, log, settings};

/// The file with settings, unless another is named.
const SETTINGS: &str = "/etc/mesh/agent.toml";

fn main() -> ExitCode {
    settings::launch(Path::new(SETTINGS), check_settings, execute)
}

/// Looks for mistakes in the settings of a run; the other commands have none of their own.
fn check_settings(cli: Cli) -> anyhow::Result<()> {
    let args = match cli.command {
        None => cli.run,
        Some(Command::Run(args)) => *args,
        Some(Command::Check(_) | Command::Uninstall(_)) => return Ok(()),
    };
    log::check(&args.log)?;
    app::check(args)
}

fn execute(cli: Cli, reloader: Reloader) -> anyhow::Result<()> {
    let args = match cli.command {
        None => cli.run,
        Some(Command::Run(args)) => *args,
        Some(Command::Check(args)) => return check::run(&args),
        Some(Command::Uninstall(args)) => {
            log::start(&args.log)?;
            return mesh_runtime::run(uninstall::run(&args));
        }
    };
    log::start(&args.log)?;
    // Loading the programs takes 25 MB for a moment, on whichever thread; packets take none.
    heap::share_one();
    mesh_runtime::run(app::run(args, reloader))
}
