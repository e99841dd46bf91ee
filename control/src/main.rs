//! mesh-control: the control plane's process.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use mesh_control::app;
use mesh_control::cli::Cli;
use mesh_control::config::Config;
use tracing_subscriber::EnvFilter;

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
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("read --log {:?}", cli.log))?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(mesh_admission::log::bounded_stderr)
        .init();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let config = Config::new(cli, hostname.map(|name| name.trim().to_owned()))?;
    mesh_runtime::run(app::run(config))
}
