//! Takes mesh off the node when it leaves its cluster: the containers of tasks, the data plane, the
//! networks, and what is on the disk.
//!
//! Invariants: the identity goes last of the files, so that an agent that dies on the way is a
//! member again and can be told to leave again; containers that are no tasks stay.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures::future::join_all;
use mesh_runtime::{Components, error_chain};

use super::{Process, STOP_LIMIT, no_view};
use crate::cli::Datapath as Mode;
use crate::config::Config;
use crate::control_link::identity::Identity;
use crate::control_link::place::Place;
use crate::control_link::{cache, leave};
use crate::datapath::{self, DatapathConfig};
use crate::encryption;
use crate::enrolment::EnrolmentError;
use crate::proxy::carry_over;
use crate::task::dependencies::files::TaskFiles;
use crate::task::docker::DockerEngine;
use crate::task::networks::keeper;
use crate::task::runtime::Runtime as _;

/// Checks that the node can leave: the engine must tell which containers are the cluster's, unless
/// the client forces it.
pub(super) async fn check(process: &Process, force: bool) -> Result<(), EnrolmentError> {
    if force {
        return Ok(());
    }
    let engine = DockerEngine::new(process.args.engine.clone());
    engine.ping().await.map_err(|error| EnrolmentError::Engine(error_chain(&error)))
}

/// Ends what the member runs, tells the cluster, and removes everything of it from the node.
///
/// # Errors
/// Something remains on the node; it has left all the same.
pub(super) async fn depart(
    process: &Process,
    config: &Config,
    components: Components,
) -> Result<(), EnrolmentError> {
    tracing::info!("leave the cluster");
    let mut remains = Vec::new();
    components.stopping().cancel();
    if let Err(error) = components.wait(STOP_LIMIT).await {
        remains.push(format!("{error:#}"));
    }
    process.attachments.store(None);
    tell_managers(config).await;
    remove_tasks(config, &mut remains).await;
    remove_data_plane(config, &mut remains).await;
    let (directory, tasks) = (config.data_dir.clone(), config.task_cache());
    match tokio::task::spawn_blocking(move || remove_files(&directory, &tasks)).await {
        Ok(failed) => remains.extend(failed),
        Err(error) => remains.push(error_chain(&error)),
    }
    process.view.send_replace(Arc::new(no_view()));
    process.fallback.send_replace(None);
    if remains.is_empty() {
        tracing::info!("this node has left its cluster");
        return Ok(());
    }
    let remains = remains.join("; ");
    tracing::error!(remains, "this node has left its cluster, but not all of mesh is off it");
    Err(EnrolmentError::Leftovers(remains))
}

/// Tells a manager that this node leaves. If none answers, the node is down there after three
/// missed heartbeats.
async fn tell_managers(config: &Config) {
    let told = match Identity::load(&config.data_dir) {
        Ok(Some(identity)) => leave::tell(&config.managers, &identity).await.map_err(|e| error_chain(&e)),
        Ok(None) => Ok(()),
        Err(error) => Err(error_chain(&error)),
    };
    if let Err(error) = told {
        tracing::warn!(error, "can't tell the cluster that this node leaves");
    }
}

/// Removes the containers of tasks, then their files.
async fn remove_tasks(config: &Config, remains: &mut Vec<String>) {
    let engine = DockerEngine::new(config.engine.clone());
    match engine.task_containers().await {
        Ok(containers) => {
            let removals = containers.iter().map(|(task, container)| {
                let engine = &engine;
                async move {
                    let removed = engine.remove(container).await;
                    removed.err().map(|error| format!("container of task {task}: {}", error_chain(&error)))
                }
            });
            remains.extend(join_all(removals).await.into_iter().flatten());
        }
        Err(error) => remains.push(format!("the containers of tasks: {}", error_chain(&error))),
    }
    if !remains.is_empty() {
        return;
    }
    let files = TaskFiles::new(config.task_files.clone());
    let swept = tokio::task::spawn_blocking(move || {
        files.sweep(&BTreeSet::new())?;
        files.dismantle()
    });
    match swept.await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => remains.push(format!("tasks' files: {}", error_chain(&error))),
        Err(error) => remains.push(error_chain(&error)),
    }
}

/// Detaches the programs and removes the networks that no container uses.
async fn remove_data_plane(config: &Config, remains: &mut Vec<String>) {
    if config.datapath != Mode::Userspace {
        let installed = DatapathConfig { bpffs: config.bpffs.clone(), ..DatapathConfig::default() };
        match tokio::task::spawn_blocking(move || datapath::uninstall(&installed)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => remains.push(format!("the data plane: {}", error_chain(&error))),
            Err(error) => remains.push(error_chain(&error)),
        }
    }
    if let Err(error) = keeper::remove_all(&DockerEngine::new(config.engine.clone())).await {
        remains.push(format!("the Docker networks of mesh: {}", error_chain(&error)));
    }
}

/// Removes the member's files and notes that the node left. Returns what could not be removed.
fn remove_files(data_dir: &Path, tasks: &Path) -> Vec<String> {
    let left = Place { left: true, ..Place::default() };
    let tasks = match fs::remove_dir_all(tasks) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error_chain(&error)),
        _ => Ok(()),
    };
    let outcomes = [
        cache::remove(data_dir).map_err(|error| error_chain(&error)),
        tasks,
        carry_over::remove(data_dir).map_err(|error| error_chain(&error)),
        encryption::remove_key(data_dir).map_err(|error| error_chain(&error)),
        left.store(data_dir).map_err(|error| error_chain(&error)),
        Identity::remove(data_dir).map_err(|error| error_chain(&error)),
    ];
    outcomes.into_iter().filter_map(Result::err).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_member_is_left_on_the_disk() {
        let directory = tempfile::tempdir().expect("a directory");
        let tasks = directory.path().join("tasks");
        fs::create_dir(&tasks).expect("a directory");
        for file in ["identity.json", "mesh-cache.json", "proxy-counters.json", "encryption.key", "tasks/one"]
        {
            fs::write(directory.path().join(file), "x").expect("a file");
        }
        assert_eq!(remove_files(directory.path(), &tasks), Vec::<String>::new());
        let left: Vec<_> = fs::read_dir(directory.path()).expect("it is listed").flatten().collect();
        assert_eq!(left.len(), 1, "expected the note alone: {left:?}");
        assert!(Place::load(directory.path()).expect("it is read").expect("the note").left);
        assert_eq!(remove_files(directory.path(), &tasks), Vec::<String>::new(), "a second time");
    }
}
