//! mesh-control: the control plane's process.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_control::app;
use mesh_control::cli::Cli;
use mesh_control::config::Config;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    mesh_runtime::log::start(&cli.log)?;
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let config = Config::new(cli, hostname.map(|name| name.trim().to_owned()))?;
    mesh_runtime::run(app::run(config))
}
