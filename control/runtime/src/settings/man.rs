//! Manual pages, from the clap definition.

use std::path::Path;

use anyhow::Context as _;
use clap::Command;

/// Writes the manual page of `command` and one for each of its subcommands to `directory`.
///
/// # Errors
/// The directory or a page can't be written.
pub fn write_man_pages(command: Command, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("write manual pages to {}", directory.display()))
}
