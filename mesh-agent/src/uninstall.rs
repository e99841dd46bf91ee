//! `mesh-agent uninstall`: removes what mesh has installed on the node.
//!
//! Left to others: tasks (Docker's), the data directory (the operator's).

use anyhow::Context;

use crate::cli::UninstallArgs;
use crate::datapath::{self, DatapathConfig};
use crate::task::dependencies::files::TaskFiles;

/// Detaches programs, removes their pins, the tunnel device, the firewall table and the tmpfs of
/// tasks that are gone.
///
/// # Errors
/// Something could not be removed; everything else is removed.
pub async fn run(args: &UninstallArgs) -> anyhow::Result<()> {
    let config = DatapathConfig { bpffs: args.bpffs.clone(), ..DatapathConfig::default() };
    tokio::task::spawn_blocking(move || datapath::uninstall(&config))
        .await?
        .context("take mesh off this node: run as root, in the node's network namespace")?;
    let files = TaskFiles::new(args.task_files.clone());
    tokio::task::spawn_blocking(move || files.dismantle()).await?.context("take the tmpfs of tasks away")?;
    tracing::info!("mesh is taken off this node; its data directory stays");
    Ok(())
}
