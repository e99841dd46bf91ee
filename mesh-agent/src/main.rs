//! mesh-agent, the binary: parses the command line, starts logging and the runtime, and runs the
//! agent.

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::cli::{Cli, Command};
use mesh_agent::config::Config;
use mesh_agent::{app, uninstall};
use mesh_runtime::log;

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
            log::start(&args.log)?;
            return mesh_runtime::run(uninstall::run(&args));
        }
    };
    log::start(&args.log)?;
    let config = Config::new(args)?;
    mesh_runtime::run(app::run(config))
}
