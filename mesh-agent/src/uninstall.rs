//! `mesh-agent uninstall`: removes what mesh has installed on the node, and prints what it removed.
//!
//! Left to others: tasks (Docker's), the data directory (the operator's).

use anyhow::{Context as _, anyhow};

use crate::cli::UninstallArgs;
use crate::datapath::{self, DatapathConfig};
use crate::instance::Instance;
use crate::task::dependencies::files::TaskFiles;
use crate::task::docker::DockerEngine;
use crate::task::networks::keeper;
use crate::task::runtime::RuntimeError;

/// Makes sure that no agent runs, then detaches programs, removes their pins, the tunnel device,
/// the firewall table, the tmpfs of tasks that are gone, and the Docker networks that no container
/// uses.
///
/// # Errors
/// An agent runs, and nothing is removed; or something could not be removed, and everything else
/// is.
pub async fn run(args: &UninstallArgs) -> anyhow::Result<()> {
    // Held to the end: an agent would put back what is removed.
    let _instance = lock_out_agents(args).await?;
    let mut failures = Vec::new();
    for removed in [remove_data_plane(args).await, remove_files(args).await, remove_networks(args).await] {
        match removed {
            Ok(removed) => removed.iter().for_each(|what| println!("removed {what}")),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if !failures.is_empty() {
        return Err(anyhow!(failures.join("; ")));
    }
    println!("containers, the networks that they use, and the data directory stay");
    Ok(())
}

async fn lock_out_agents(args: &UninstallArgs) -> anyhow::Result<Option<Instance>> {
    let (directory, stop) = (args.data_dir.clone(), args.stop);
    let take = move || {
        if stop {
            Instance::take_over(&directory)
        } else if directory.exists() {
            Instance::take(&directory).map(Some)
        } else {
            Ok(None)
        }
    };
    Ok(tokio::task::spawn_blocking(take).await??)
}

async fn remove_data_plane(args: &UninstallArgs) -> anyhow::Result<Vec<String>> {
    let config = DatapathConfig { bpffs: args.bpffs.clone(), ..DatapathConfig::default() };
    tokio::task::spawn_blocking(move || datapath::uninstall(&config))
        .await?
        .context("take mesh off this node: run as root, in the node's network namespace")
}

async fn remove_files(args: &UninstallArgs) -> anyhow::Result<Vec<String>> {
    let files = TaskFiles::new(args.task_files.clone());
    let is_removed = tokio::task::spawn_blocking(move || files.dismantle())
        .await?
        .context("take the tmpfs of tasks away")?;
    Ok(is_removed
        .then(|| format!("the directory of tasks' files {}", args.task_files.display()))
        .into_iter()
        .collect())
}

async fn remove_networks(args: &UninstallArgs) -> anyhow::Result<Vec<String>> {
    match keeper::remove_all(&DockerEngine::new(args.engine.clone())).await {
        Ok(names) => Ok(names.into_iter().map(|name| format!("the Docker network {name}")).collect()),
        // A node whose engine is gone already has nothing to keep.
        Err(error @ RuntimeError::Unavailable(_)) => {
            tracing::warn!(
                error = mesh_runtime::error_chain(&error),
                "the Docker networks of mesh stay: remove them with docker network prune once the engine runs"
            );
            Ok(Vec::new())
        }
        Err(error) => Err(error).context("remove the Docker networks of mesh"),
    }
}
