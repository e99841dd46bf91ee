//! `mesh-agent uninstall`: removes what mesh has installed on the node.
//!
//! Left to others: tasks (Docker's), the data directory (the operator's).

use anyhow::Context;

use crate::cli::UninstallArgs;
use crate::datapath::{self, DatapathConfig};
use crate::task::dependencies::files::TaskFiles;
use crate::task::docker::DockerEngine;
use crate::task::networks::keeper;
use crate::task::runtime::RuntimeError;

/// Detaches programs, removes their pins, the tunnel device, the firewall table, the tmpfs of tasks
/// that are gone, and the Docker networks that no container uses.
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
    match keeper::remove_all(&DockerEngine::new(args.engine.clone())).await {
        Ok(()) => {}
        // A node whose engine is gone already has nothing to keep.
        Err(error @ RuntimeError::Unavailable(_)) => tracing::warn!(
            error = mesh_runtime::error_chain(&error),
            "the Docker networks of mesh stay: remove them with docker network prune once the engine runs"
        ),
        Err(error) => return Err(error).context("remove the Docker networks of mesh"),
    }
    tracing::info!("mesh is taken off this node; its data directory stays");
    Ok(())
}
