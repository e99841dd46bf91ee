//! Starts and joins the two carriers of traffic on this node: the kernel programs, if there are
//! any, and the proxy.
//!
//! Invariant: a generation of the mesh table counts as applied only when both follow it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mesh_state::ids::TaskId;
use mesh_state::spec::Protocol;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::config::Config;
use crate::datapath::{
    Datapath, DatapathConfig, DatapathError, DatapathMode, Fallback, TaskLink, TcHooks, open_or_fall_back,
};
use crate::lb::loads::Loads;
use crate::proxy::Proxy;
use crate::task::load::LoadMeter;
use crate::task::network::{Draining, RunningTask, StartingTask, TaskNetwork, TaskNetworkError};
use mesh_runtime::{Components, error_chain};

/// The kernel programs, if there are any.
#[derive(Default)]
pub(super) struct Programs {
    pub(super) datapath: Option<Arc<Datapath>>,
    /// Why there are none, though the node's settings allow them.
    pub(super) fallback: Option<Fallback>,
}

/// Loads and attaches the kernel programs, unless `--datapath userspace`. Blocks.
///
/// # Errors
/// The node lacks something that the programs need, and its settings demand them; or it has a
/// mistake in its settings.
pub(super) fn open_datapath(config: &Config, loads: Arc<Loads>) -> Result<Programs, DatapathError> {
    let mode = match config.datapath {
        cli::Datapath::Auto => DatapathMode::Auto,
        cli::Datapath::Xdp => DatapathMode::Xdp,
        cli::Datapath::Tc => DatapathMode::Tc,
        cli::Datapath::Userspace => {
            tracing::info!(
                "the userspace datapath has no tunnel: tasks reach those of other nodes by published ports only"
            );
            return Ok(Programs::default());
        }
    };
    let tc_hooks = match config.tc_hooks {
        cli::TcHooks::Auto => TcHooks::Auto,
        cli::TcHooks::Tcx => TcHooks::Tcx,
        cli::TcHooks::Clsact => TcHooks::Clsact,
    };
    let settings = DatapathConfig {
        mode,
        tc_hooks,
        interfaces: config.interfaces.clone(),
        address: Some(config.address),
        bpffs: config.bpffs.clone(),
        vxlan_port: config.vxlan_port,
        tables: config.tables,
        syn_guard_rate: config.syn_guard_rate,
        loads,
        ..DatapathConfig::default()
    };
    Ok(match open_or_fall_back(&settings)? {
        Ok(datapath) => Programs { datapath: Some(datapath), fallback: None },
        Err(fallback) => Programs { datapath: None, fallback: Some(fallback) },
    })
}

/// The generation `cached` of the table on disk, if the programs must not follow it: their maps
/// hold a newer table, and stay as they are until a manager sends one.
///
/// # Errors
/// The data plane has already failed.
pub(super) fn passed_over(datapath: &Datapath, cached: u64) -> Result<Option<u64>, DatapathError> {
    let is_older = cached > 0 && datapath.is_ahead_of(cached)?;
    if is_older {
        tracing::warn!(
            cached,
            "the table on disk is older than the kernel maps': the programs keep theirs until a manager sends one"
        );
    }
    Ok(is_older.then_some(cached))
}

/// The data path in use, by the name that the cluster gives it.
pub(super) fn datapath_name(datapath: Option<&Datapath>) -> &'static str {
    let Some(datapath) = datapath else { return "userspace" };
    let has_xdp = datapath.stats().is_ok_and(|stats| stats.hooks.iter().any(|hook| hook.hook == "xdp"));
    if has_xdp { "xdp" } else { "tc" }
}

/// How long after a failure the programs are given the host's ports again.
const RETRY: Duration = Duration::from_millis(500);

/// Makes the programs leave the host's own ports alone, until `shutdown`. This needs no table:
/// services that an earlier agent left in the maps may hold a port by which managers are reached.
pub(super) async fn leave_host_ports(
    datapath: Arc<Datapath>,
    mut ports: watch::Receiver<Arc<BTreeSet<(Protocol, u16)>>>,
    shutdown: CancellationToken,
) {
    loop {
        let (leaving, now) = (Arc::clone(&datapath), Arc::clone(&ports.borrow_and_update()));
        let left = tokio::task::spawn_blocking(move || leaving.leave_to_host(&now)).await;
        let failed = match left {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                tracing::error!(
                    error = error_chain(&error),
                    "can't leave the host's ports to the host: trying again"
                );
                true
            }
            // A panic in the blocking task ends this future, and with it the agent.
            Err(_) => return,
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = ports.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// Reports the generation that both `first` and `second` follow, until `shutdown`.
pub(super) async fn report_applied(
    mut first: watch::Receiver<u64>,
    mut second: watch::Receiver<u64>,
    applied: watch::Sender<u64>,
    shutdown: CancellationToken,
) {
    loop {
        let both = (*first.borrow_and_update()).min(*second.borrow_and_update());
        applied.send_if_modified(|applied| std::mem::replace(applied, both) != both);
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = first.changed() => if changed.is_err() { return },
            changed = second.changed() => if changed.is_err() { return },
        }
    }
}

/// Starts telling whether the agent is ready: once the table of `generation`, with which it starts,
/// carries traffic.
pub(super) fn start_telling_readiness(
    components: &Components,
    mut applied: watch::Receiver<u64>,
    generation: u64,
    ready: watch::Sender<bool>,
) {
    let stop = components.stopping().clone();
    components.spawn("readiness", async move {
        let carries = applied.wait_for(|applied| *applied >= generation);
        // If its sender has gone, the member is stopping.
        if matches!(stop.run_until_cancelled(carries).await, Some(Ok(_))) {
            ready.send_replace(true);
        }
        stop.cancelled().await;
        Ok(())
    });
}

/// Connects tasks to the kernel programs; the proxy reaches tasks without that.
pub(super) struct MeshNetwork {
    pub(super) datapath: Option<Arc<Datapath>>,
    /// Carries the connections that the programs don't see.
    pub(super) proxy: Arc<Proxy>,
    /// Measures the tasks' loads, with programs or without.
    pub(super) meter: Arc<LoadMeter>,
}

impl MeshNetwork {
    /// Runs blocking work of the data plane, if there is one.
    async fn blocking<T, F>(&self, work: F) -> Result<T, TaskNetworkError>
    where
        T: Default + Send + 'static,
        F: FnOnce(&Datapath) -> Result<T, DatapathError> + Send + 'static,
    {
        let Some(datapath) = self.datapath.clone() else { return Ok(T::default()) };
        match tokio::task::spawn_blocking(move || work(&datapath)).await {
            Ok(result) => result.map_err(|error| TaskNetworkError(error_chain(&error))),
            Err(error) => Err(TaskNetworkError(error.to_string())),
        }
    }
}

#[async_trait]
impl TaskNetwork for MeshNetwork {
    async fn starting(&self, _task: &StartingTask) -> Result<(), TaskNetworkError> {
        // The programs are attached when the task runs.
        Ok(())
    }

    async fn started(&self, task: &RunningTask) -> Result<(), TaskNetworkError> {
        self.meter.started(task);
        // A task that is not on the network `mesh` has no published ports.
        let Some(address) = task.address else { return Ok(()) };
        let link =
            TaskLink { task_id: task.task_id.clone(), pid: task.pid, address, address6: task.address6 };
        self.blocking(move |datapath| datapath.attach_task(&link)).await
    }

    async fn flows_left(&self, task: &Draining) -> Result<u64, TaskNetworkError> {
        let proxied = self.proxy.ledger().drain(&task.backends);
        let asked = task.clone();
        Ok(proxied + self.blocking(move |datapath| datapath.flows_left(&asked)).await?)
    }

    async fn stopped(&self, task_id: &TaskId) {
        self.meter.stopped(task_id);
        let (task, id) = (task_id.clone(), task_id.clone());
        if let Err(error) = self.blocking(move |datapath| datapath.detach_task(&id)).await {
            tracing::warn!(%task, error = error_chain(&error), "can't detach a task from the mesh");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_generation_is_applied_when_both_follow_it() {
        let (first, first_receiver) = watch::channel(0);
        let (second, second_receiver) = watch::channel(0);
        let (applied, mut seen) = watch::channel(0);
        let shutdown = CancellationToken::new();
        let reporter =
            tokio::spawn(report_applied(first_receiver, second_receiver, applied, shutdown.clone()));
        first.send_replace(5);
        second.send_replace(3);
        seen.wait_for(|applied| *applied == 3).await.expect("the slower one counts");
        second.send_replace(6);
        seen.wait_for(|applied| *applied == 5).await.expect("now the other is slower");
        shutdown.cancel();
        reporter.await.expect("the reporter ends");
    }
}
