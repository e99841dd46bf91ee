//! mesh-control: the control plane's process.

use std::path::Path;
use std::process::ExitCode;

use mesh_control::app;
use mesh_control::cli::Cli;
use mesh_control::config::Settings;
use mesh_runtime::reload::Reloader;
use mesh_runtime::{log, settings};

/// The file with settings, unless another is named.
const SETTINGS: &str = "/etc/mesh/control.toml";

fn main() -> ExitCode {
    settings::launch(Path::new(SETTINGS), check, start)
}

fn check(cli: Cli) -> anyhow::Result<()> {
    log::check(&cli.log)?;
    config(cli).map(drop)
}

fn start(cli: Cli, reloader: Reloader) -> anyhow::Result<()> {
    log::start(&cli.log)?;
    mesh_runtime::run(app::run(config(cli)?, reloader))
}

fn config(cli: Cli) -> anyhow::Result<Settings> {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    Ok(Settings::new(cli, hostname.map(|name| name.trim().to_owned()))?)
}
