//! What a member of a cluster runs: names, the carriers of traffic, the link to managers, the
//! tasks. No decisions.
//!
//! Invariants: sockets are bound before anything runs, so that a clash is an error at once; a node
//! that has joined answers names from what is on its disk before its programs are loaded, and
//! carries traffic before any manager is reached; stopping leaves programs, pins and tasks as they
//! are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use mesh_admission::door::Door;
use mesh_admission::figures::{Figures, Listener};
use mesh_admission::refusals::Refusals;
use mesh_runtime::Components;
use mesh_state::ids::{BackendId, NodeId};
use prometheus::Registry;
use prometheus::process_collector::ProcessCollector;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::carriers::Programs;
use super::health::PassiveHealth;
use super::membership::Membership;
use super::state::State;
use super::{Process, carriers, encryption};
use crate::admin::{self, Admin};
use crate::config::Config;
use crate::control_link::cache::{self, Cached};
use crate::control_link::identity::Identity;
use crate::control_link::relay_keys::RelayKeys;
use crate::datapath::{Datapath, Fallback};
use crate::docker_api;
use crate::lb::loads::Loads;
use crate::metrics::progress::Progress;
use crate::metrics::{AgentCollector, NodeFacts};
use crate::names::counts::Counts;
use crate::names::{self, Names};
use crate::proxy::carry_over::{self, StoredCounters};
use crate::proxy::{Listening, Proxy};
use crate::task::cache::TaskCache;
use crate::task::local::LocalTasks;
use crate::view::NodeView;
use mesh_runtime::error_chain;

/// Sockets, bound before anything runs.
struct Sockets {
    metrics: TcpListener,
    relay: Listening,
}

/// Starts everything that a member runs, as `components`. Returns whether a manager has welcomed
/// this node.
///
/// # Errors
/// A part can't start. What has started runs until `components` are stopped.
pub(super) async fn start(
    process: &Process,
    mut config: Config,
    identity: Option<Identity>,
    components: &Components,
) -> anyhow::Result<watch::Receiver<bool>> {
    let room = &process.room;
    config.proxy.connections_max = room.connections;
    let (first_view, first_keys) = first_state(&config, identity.as_ref());
    let resumes_at = first_view.generation;
    process.view.send_replace(Arc::new(first_view));
    let (view, views) = (process.view.clone(), process.view.subscribe());
    let (relay_keys, keys) = watch::channel(first_keys);
    let loads = Arc::new(Loads::default());
    let (refusals, counts) = (process.refusals.clone(), Counts::new()?);
    let (proxy, relay) =
        Proxy::bind(config.proxy.clone(), views.clone(), keys.clone(), Arc::clone(&loads), refusals.clone())?;
    match carry_over::load(&config.data_dir) {
        Ok(before) => proxy.ledger().resume(&before),
        Err(error) => tracing::warn!(error = %error_chain(&error), "the proxy counts from zero"),
    }
    let sockets = Sockets { relay, metrics: bind_metrics(&config).await? };
    // Before the programs, as the kernel's check of them takes seconds on a busy node: meanwhile
    // those of an earlier agent forward packets, but nothing else answers names.
    let local = Arc::new(restored_tasks(&config, identity.as_ref()).await?);
    let served = (room.names, refusals.clone(), counts.clone());
    start_names(components, views.clone(), Arc::clone(&local), served);
    let encryption = encryption::start(components, &config, views.clone());
    let (opening, known) = (config.clone(), Arc::clone(&loads));
    let Programs { datapath, fallback } =
        tokio::task::spawn_blocking(move || carriers::open_datapath(&opening, known)).await??;
    process.fallback.send_replace(fallback.as_ref().map(Fallback::sentence));
    // Without programs, nothing puts packets on the device.
    let encryption = encryption.filter(|_| datapath.is_some());
    let datapath_name = carriers::datapath_name(datapath.as_deref());
    tracing::info!(
        node = config.name,
        address = %config.address,
        datapath = datapath_name,
        resumes = resumes_at > 0,
        "this node takes part in its cluster"
    );

    let applied = start_carriers(components, &proxy, datapath.clone(), sockets.relay, &views)?;
    let (node, node_facts) = watch::channel(first_facts(&config, datapath_name, fallback));
    let kept = start_keeping_counters(components, config.data_dir.clone(), &proxy);
    carriers::start_telling_readiness(components, applied.clone(), resumes_at, process.ready.clone());
    let (connected, is_connected) = watch::channel(false);
    let (expelled, is_expelled) = watch::channel(false);
    let ejected = start_health(components, &proxy, datapath.clone(), &views);
    let collector = |progress| AgentCollector {
        view: views.clone(),
        applied: applied.clone(),
        connected: is_connected.clone(),
        node: node_facts,
        proxy: Arc::clone(&proxy),
        kept,
        datapath: datapath.clone(),
        loads: Arc::clone(&loads),
        ejected,
        progress,
        backends: config.metrics_backends,
    };
    let metrics_door = Door::new(Listener::AgentMetrics, room.metrics, refusals.clone());
    let states = (is_expelled, process.fallback.subscribe());
    start_admin(components, sockets.metrics, metrics_door, (&refusals, &counts), states, collector)?;
    start_telling_manager(components, &config, views.clone());
    start_cache(components, config.data_dir.clone(), views, keys);
    let state = State { view, relay_keys, connected, expelled, applied, encryption, loads };
    let shown = (Arc::clone(&process.attachments), Arc::clone(&process.promotions));
    let membership =
        Membership { config, identity, state, datapath, proxy, datapath_name, node, local, shown };
    components.spawn("membership", membership.run(components.clone()));
    Ok(is_connected)
}

/// The node's properties in metrics before it has joined.
fn first_facts(config: &Config, datapath_name: &str, fallback: Option<Fallback>) -> NodeFacts {
    NodeFacts {
        hostname: config.name.clone(),
        kernel: config.kernel.clone(),
        datapath: datapath_name.to_owned(),
        fallback: fallback.map(|fallback| fallback.cause),
        role: String::new(),
        certificate_until: None,
        certificate_renewals: 0,
    }
}

/// Starts serving names to the node's tasks.
fn start_names(
    components: &Components,
    views: watch::Receiver<Arc<NodeView>>,
    local: Arc<LocalTasks>,
    (figures, refusals, counts): (Figures, Refusals, Counts),
) {
    let door = Door::new(Listener::Names, figures, refusals);
    let names =
        Names { views, local, door, counts, port: names::DNS_PORT, resolv_conf: names::RESOLV_CONF.into() };
    let stop = components.stopping().clone();
    components.spawn("names", async move {
        names.run(stop).await;
        Ok(())
    });
}

/// Starts sending the node's id to the manager on this machine, once there is one.
fn start_telling_manager(components: &Components, config: &Config, views: watch::Receiver<Arc<NodeView>>) {
    let (control, stop) = (config.control_socket.clone(), components.stopping().clone());
    components.spawn("manager's node", async move {
        docker_api::tell_manager(control, views, stop).await;
        Ok(())
    });
}

/// Starts storing the newest view and keys on disk, for a start without a manager.
fn start_cache(
    components: &Components,
    directory: PathBuf,
    views: watch::Receiver<Arc<NodeView>>,
    keys: watch::Receiver<RelayKeys>,
) {
    let stop = components.stopping().clone();
    components.spawn("cache", async move {
        cache::keep(directory, views, keys, stop).await;
        Ok(())
    });
}

/// Starts storing the proxy's counters on disk. Returns the channel of what scrapes show of them.
fn start_keeping_counters(
    components: &Components,
    directory: PathBuf,
    proxy: &Arc<Proxy>,
) -> watch::Receiver<StoredCounters> {
    let (sender, kept) = watch::channel(StoredCounters::Yes(Arc::new(proxy.ledger().stats())));
    let (proxy, stop) = (Arc::clone(proxy), components.stopping().clone());
    components.spawn("counters", async move {
        carry_over::keep(directory, move || proxy.ledger().stats(), sender, stop).await;
        Ok(())
    });
    kept
}

/// The view and the keys at the start: a member's cached ones, else empty ones.
fn first_state(config: &Config, identity: Option<&Identity>) -> (NodeView, RelayKeys) {
    let node_id = identity.map_or_else(NodeId::default, |identity| identity.node_id.clone());
    let empty = || (NodeView::new(node_id.clone(), config.address), RelayKeys::default());
    match cache::load(&config.data_dir) {
        Ok(Some(Cached { mut view, relay_keys })) if view.node_id == node_id => {
            view.address = config.address;
            (view, relay_keys)
        }
        Ok(Some(_)) => {
            tracing::warn!("the cached table is another node's: start without");
            empty()
        }
        Ok(None) => empty(),
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "load the cached table: start without");
            empty()
        }
    }
}

/// The tasks that ran on this node when an earlier agent stopped, for the name server.
async fn restored_tasks(config: &Config, identity: Option<&Identity>) -> anyhow::Result<LocalTasks> {
    if identity.is_none() {
        return Ok(LocalTasks::default());
    }
    let cache = TaskCache::open(config.task_cache())?;
    match tokio::task::spawn_blocking(move || cache.load()).await? {
        Ok(tasks) => Ok(LocalTasks::restored(&tasks)),
        Err(error) => {
            tracing::warn!(
                error = %error_chain(&error),
                "load the cached tasks: they get no names until the engine answers"
            );
            Ok(LocalTasks::default())
        }
    }
}

async fn bind_metrics(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.metrics_listen;
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} for /metrics: choose another with --metrics-listen"))
}

/// Starts the proxy and the kernel data plane. Returns the channel of the generation that both
/// carry.
///
/// # Errors
/// The data plane has already failed.
fn start_carriers(
    components: &Components,
    proxy: &Arc<Proxy>,
    datapath: Option<Arc<Datapath>>,
    relay: Listening,
    views: &watch::Receiver<Arc<NodeView>>,
) -> anyhow::Result<watch::Receiver<u64>> {
    let stopping = components.stopping();
    let (by_proxy, proxy_applied) = watch::channel(0);
    let (running, stop) = (Arc::clone(proxy), stopping.clone());
    components.spawn("proxy", async move {
        running.run(relay, by_proxy, stop).await;
        Ok(())
    });
    let Some(datapath) = datapath else { return Ok(proxy_applied) };
    let (host_ports, leaving, stop) = (proxy.host_ports(), Arc::clone(&datapath), stopping.clone());
    components.spawn("host ports", async move {
        carriers::leave_host_ports(leaving, host_ports, stop).await;
        Ok(())
    });
    let (mut views, stop) = (views.clone(), stopping.clone());
    let passed_over = carriers::passed_over(&datapath, views.borrow().generation)?;
    let (by_programs, programs_applied) = watch::channel(passed_over.unwrap_or_default());
    components.spawn("datapath", async move {
        // Before the first table there is nothing to follow, and the maps may hold an earlier
        // agent's.
        let is_followed = |view: &Arc<NodeView>| view.generation > 0 && passed_over != Some(view.generation);
        let first = async { views.wait_for(is_followed).await.is_ok() };
        if stop.run_until_cancelled(first).await == Some(true) {
            datapath.run(views, by_programs, stop).await;
        }
        Ok(())
    });
    let (applied, both_applied) = watch::channel(0);
    let stop = stopping.clone();
    components.spawn("apply report", async move {
        carriers::report_applied(proxy_applied, programs_applied, applied, stop).await;
        Ok(())
    });
    Ok(both_applied)
}

/// Starts the passive health check. Returns the channel of ejected backends.
fn start_health(
    components: &Components,
    proxy: &Arc<Proxy>,
    datapath: Option<Arc<Datapath>>,
    views: &watch::Receiver<Arc<NodeView>>,
) -> watch::Receiver<BTreeSet<BackendId>> {
    let (ejected, left_out) = watch::channel(BTreeSet::new());
    let health = PassiveHealth { views: views.clone(), proxy: Arc::clone(proxy), datapath, ejected };
    let stop = components.stopping().clone();
    components.spawn("passive health", async move {
        health.run(stop).await;
        Ok(())
    });
    left_out
}

/// Starts serving metrics and health.
fn start_admin(
    components: &Components,
    listener: TcpListener,
    door: Arc<Door>,
    (refusals, counts): (&Refusals, &Counts),
    (expelled, fallback): (watch::Receiver<bool>, watch::Receiver<Option<String>>),
    collector: impl FnOnce(Progress) -> AgentCollector,
) -> anyhow::Result<()> {
    let stopping = components.stopping();
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    refusals.show_in(&registry)?;
    counts.show_in(&registry)?;
    let progress = Progress::new(&registry)?;
    let collector = collector(progress.clone());
    let (views, applied) = (collector.view.clone(), collector.applied.clone());
    let admin = Admin {
        registry: registry.clone(),
        applied: applied.clone(),
        datapath: collector.datapath.clone(),
        expelled,
        fallback,
        debug: components.debug_routes(),
    };
    registry.register(Box::new(collector))?;
    let stop = stopping.clone();
    components.spawn("progress", async move {
        progress.follow(views, applied, stop).await;
        Ok(())
    });
    let stop = stopping.clone();
    components.spawn("admin", async move {
        admin::serve(listener, admin, door, stop).await;
        Ok(())
    });
    Ok(())
}
