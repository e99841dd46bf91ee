//! Wires one manager: what is started, in which order, and how it ends. No decisions.
//!
//! Invariants: all sockets are bound before anything else starts, except that a locked manager
//! answers its control socket alone; every part is a component of
//! [`mesh_runtime`], so one that panics or ends too early ends the process with an error, and its
//! supervisor restarts it.

mod beginning;
mod desk;
mod init_desk;
mod managed;
mod nodes;
mod own_etcd;
mod reload;
mod remote;
mod sockets;
mod unlock;
mod unlock_desk;
mod upkeep;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chrono::Utc;
use hyper_util::service::TowerToHyperService;
use mesh_admission::door::Door;
use mesh_admission::http;
use mesh_runtime::{Components, follow_signals, supervisor};
use mesh_state::ca::ManagerCas;
use mesh_state::cluster::Manager;
use mesh_state::node::OwnPort;
use mesh_state::store::{EtcdStore, Store};
use prometheus::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api;
use crate::at_rest::FileKeeper;
use crate::bootstrap::{self, OpenedCluster};
use crate::ca::{LIFE_MIN_OF_TESTS, MEMBER_LIFE_MIN};
use crate::config::{Config, Settings};
use crate::context::{ApiContext, RELAY_KEY, join_tokens};
use crate::doors::Doors;
use crate::feed::clocks;
use crate::feed::watch::Feed;
use crate::leader::deposition::Deposition;
use crate::leader::driver::Driver;
use crate::leader::election::{Candidate, Leadership};
use crate::metrics;
use crate::metrics::admin::{self, Admin};
use crate::node_service::mesh_table::Table;
use crate::node_service::own_etcd::OwnEtcd;
use crate::node_service::recorder::{Recorder, Reports};
use crate::node_service::session_context::SessionContext;
use crate::node_service::tables;
use crate::orders::Orders;
use crate::own_node::OwnNode;
use crate::own_store::OwnStore;
use crate::planners;
use crate::raised_store::RaisedStore;
use crate::slots::own_ports;
use crate::waiting;
use mesh_runtime::backoff::Backoff;
use mesh_runtime::error_chain;
use mesh_runtime::reload::Reloader;
use mesh_runtime::unix_socket;
use sockets::{Listeners, OWNERS_ALONE, bind_tcp, remove_socket};
use unlock::Start;

/// How long the components may take to end at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// The shortest pause between attempts to reach etcd at the start.
const PAUSE_SHORTEST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(3);

/// The components, each of which must end only at shutdown.
struct DaemonParts {
    components: Components,
    shutdown: CancellationToken,
}

impl DaemonParts {
    fn start(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.components.spawn(name, async move {
            part.await;
            Ok(())
        });
    }

    /// Starts a component that may fail.
    fn start_server<E: Into<anyhow::Error>>(
        &self,
        name: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.components.spawn(name, async move { part.await.map_err(Into::into) });
    }
}

/// What a manager with an etcd of its own adds to what is served.
#[derive(Clone)]
struct Managed {
    /// The directory of etcd's CA.
    pki: PathBuf,
    orders: Orders,
}

/// The etcd that this manager runs, and what it adds.
type OwnEtcdAndOrders = (Managed, Arc<EtcdStore>);

/// What others need of a cluster that is served.
struct Served {
    /// The token with which the node on this machine joins as a manager.
    manager_token: String,
    etcd: Arc<EtcdStore>,
    context: ApiContext,
    leadership: watch::Receiver<Option<Leadership>>,
    registry: Registry,
}

/// Runs a manager until it gets a signal to stop; `reloader` reads its settings again.
///
/// # Errors
/// It can't start, or a component failed.
pub async fn run(settings: Settings, reloader: Reloader) -> anyhow::Result<()> {
    let mut config = match settings {
        Settings::External(config) => config,
        Settings::Managed(settings) => return managed::run(settings, reloader).await,
    };
    let docker = unix_socket::bind(&config.socket, OWNERS_ALONE)
        .with_context(|| format!("listen on {}", config.socket.display()))?;
    let components = Components::new(config.debug_faults);
    let reloads = reloader.reloads();
    components.spawn("signals", follow_signals(components.stopping().clone(), reloader));
    // From here on the sockets answer, if only with the reason why this manager still waits.
    components.spawn("systemd", supervisor::keep_told(async {}, components.stopping().clone()));
    let start = unlock::opened(&config.data_dir, &docker, false, components.stopping()).await?;
    if let Start::Opened(opening) = start {
        config.unlock = opening.key();
        let listeners = bind_tcp(&config, docker).await?;
        let stop = components.stopping().clone();
        match serve_cluster(&config, listeners, &components, None).await? {
            Some(Served { etcd, .. }) => {
                components.spawn("the certificates for etcd", reload::follow(etcd, reloads, stop));
            }
            None => stop.cancel(),
        }
        opening.serves();
    }
    let end = components.wait(SHUTDOWN_GRACE).await;
    remove_socket(&config.socket);
    end
}

/// Opens the cluster and starts everything that serves it, as `components`. Returns `None` if they
/// are stopped before there is a cluster.
async fn serve_cluster(
    config: &Config,
    listeners: Listeners,
    components: &Components,
    managed: Option<Managed>,
) -> anyhow::Result<Option<Served>> {
    let shutdown = components.stopping().clone();
    supervisor::tell_status("waits for etcd");
    let registry = Registry::new();
    let etcd = EtcdStore::open(config.etcd.clone()).await?;
    let store = metrics::store::CountedStore::register(etcd.clone(), &registry)?;
    let (waits_for, reason) = watch::channel("the cluster was not read from etcd yet".to_owned());
    let orders = managed.as_ref().map(|managed| managed.orders.clone());
    let opened = tokio::select! {
        opened = open_cluster(&store, config, waits_for) => Some(opened?),
        () = waiting::refuse(&listeners.docker, &listeners.admin, reason, orders) => None,
        () = waiting::close(listeners.remote.as_ref()) => None,
        () = shutdown.cancelled() => None,
    };
    let Some(opened) = opened else { return Ok(None) };
    let manager_token = join_tokens(&opened.cluster, &opened.sealer)?.manager;
    let base = opened.cluster.revision_base;
    let store =
        OwnStore::new(RaisedStore::new(store, base), opened.cluster.id.clone(), opened.created + base);
    let store: Arc<dyn Store> = Arc::new(store);
    let parts = DaemonParts { components: components.clone(), shutdown };
    let own_ports = {
        let (nodes, metrics) = (config.node_listen.port(), config.metrics_listen.port());
        let docker = config.remote_api.as_ref().map(|api| api.listen.port());
        own_ports::of_manager(nodes, metrics, docker, etcd_ports(&etcd, config).await)
    };
    let etcd = Arc::new(etcd);
    let managed = managed.map(|managed| (managed, Arc::clone(&etcd)));
    let (context, leadership) =
        start(config, listeners, (store, managed), opened, own_ports, &registry, &parts)?;
    supervisor::tell_status("serving");
    info!(name = config.name, nodes = %config.node_listen, socket = %config.socket.display(), "serving");
    Ok(Some(Served { manager_token, etcd, context, leadership, registry }))
}

/// Opens the cluster; waits for etcd, and for this manager's cluster in it, for as long as it
/// takes. Other errors are final. Publishes the reason of the wait in `waits_for`.
async fn open_cluster(
    store: &dyn Store,
    config: &Config,
    waits_for: watch::Sender<String>,
) -> anyhow::Result<OpenedCluster> {
    let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
    loop {
        let wanted = bootstrap::BootstrapOptions {
            pool: config.pool,
            network_pool: config.network_pool,
            new_cluster: config.new_cluster,
            unlock: config.unlock.clone(),
        };
        match bootstrap::open_cluster(store, &config.data_dir, wanted, Utc::now()).await {
            Ok(opened) => return Ok(opened),
            Err(error) if error.is_transient() => {
                warn!(error = &error as &dyn std::error::Error, etcd = ?config.etcd.addresses, "waits for etcd");
                waits_for.send_replace(error_chain(&error));
                tokio::time::sleep(backoff.pause(&mut rand::rng())).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The ports of etcd's members: those that etcd reports, else those in the configuration.
async fn etcd_ports(etcd: &EtcdStore, config: &Config) -> BTreeSet<u16> {
    etcd.member_ports().await.unwrap_or_else(|error| {
        warn!(
            error = error_chain(&error),
            "can't ask etcd for its members' ports: only those of --etcd are reserved"
        );
        own_ports::of_urls(&config.etcd.addresses)
    })
}

fn start(
    config: &Config,
    listeners: Listeners,
    (store, managed): (Arc<dyn Store>, Option<OwnEtcdAndOrders>),
    opened: OpenedCluster,
    own_ports: Vec<OwnPort>,
    registry: &Registry,
    parts: &DaemonParts,
) -> anyhow::Result<(ApiContext, watch::Receiver<Option<Leadership>>)> {
    let OpenedCluster { sealer, trust, cluster, lock, .. } = opened;
    let sealer = Arc::new(sealer);
    let relay_key = sealer.open(RELAY_KEY, &cluster.relay_key)?;
    let doors = Doors::open(registry)?;
    let own_node = OwnNode::load(&config.data_dir)?;
    let (follower, feed) = crate::feed::watch::feed();
    parts.start("the watch on etcd", follower.follow(Arc::clone(&store), parts.shutdown.clone()));
    let files = FileKeeper::new(&config.data_dir, &feed, Arc::clone(&sealer), lock);
    let context = ApiContext {
        store: Arc::clone(&store),
        feed: feed.clone(),
        manager_name: config.name.clone(),
        own_node,
        advertise: config.advertise,
        node_port: config.advertise_port,
        sealer,
        clocks: Arc::default(),
        logs: Arc::default(),
        at_rest: files.follows.subscribe(),
        certificate_life_min: if config.debug_short_certificates {
            LIFE_MIN_OF_TESTS
        } else {
            MEMBER_LIFE_MIN
        },
        stopping: parts.shutdown.clone(),
        orders: managed.as_ref().map(|(managed, _)| managed.orders.clone()),
    };
    parts.start("this manager's secret files", files.run(parts.shutdown.clone()));
    start_clocks(&context, registry, parts)?;
    let trust = nodes::follow_trust(&context, trust, parts);
    let cas = watch::Sender::new(ManagerCas::default());
    let leadership = start_leadership(config, &context, cas.subscribe(), own_ports, registry, parts)?;

    let (tables, tables_seen) = watch::channel(Arc::new(Table::default()));
    let reports = Reports::default();
    let publisher = tables::publish(feed.clone(), reports.clone(), tables, parts.shutdown.clone());
    parts.start("the mesh table", publisher);
    let recorder = Recorder {
        store,
        feed: feed.clone(),
        manager: config.name.clone(),
        reports: reports.clone(),
        door: Arc::clone(&doors.nodes),
    };
    parts.start("the recorder", recorder.run(parts.shutdown.clone()));
    let shared = SessionContext {
        cluster: context.clone(),
        tables: tables_seen,
        reports,
        loads: Arc::default(),
        relay_key,
        door: Arc::clone(&doors.nodes),
        shutdown: parts.shutdown.clone(),
    };
    let own_etcd = managed.map(|(managed, etcd)| OwnEtcd { etcd, pki: managed.pki });
    nodes::start(config, listeners.nodes, (shared, trust.clone(), cas), own_etcd, registry, parts)?;

    let api_metrics = metrics::api::ApiMetrics::register(registry)?;
    start_docker_api(listeners.docker, doors.docker, context.clone(), api_metrics.clone(), parts);
    if let Some(listener) = listeners.remote {
        let router = api::remote_router(context.clone(), api_metrics);
        remote::start(config, (listener, doors.remote), (context.clone(), trust), router, parts)?;
    }
    start_admin(listeners.admin, doors.admin, feed, registry, parts)?;
    Ok((context, leadership))
}

/// Starts comparing the other managers' clocks with this one's.
fn start_clocks(context: &ApiContext, registry: &Registry, parts: &DaemonParts) -> anyhow::Result<()> {
    metrics::clocks::register(Arc::clone(&context.clocks), registry)?;
    let following = clocks::follow_managers(
        context.feed.clone(),
        context.manager_name.clone(),
        Arc::clone(&context.clocks),
        parts.shutdown.clone(),
    );
    parts.start("the managers' clocks", following);
    Ok(())
}

fn start_docker_api(
    listener: UnixListener,
    door: Arc<Door>,
    context: ApiContext,
    api_metrics: metrics::api::ApiMetrics,
    parts: &DaemonParts,
) {
    let router = api::router(context, api_metrics);
    let router = TowerToHyperService::new(router);
    let serving = http::serve(listener, door, api::kind_of, router, parts.shutdown.clone());
    parts.start("the Docker API", serving);
}

/// Starts serving metrics and health.
fn start_admin(
    listener: TcpListener,
    door: Arc<Door>,
    feed: Feed,
    registry: &Registry,
    parts: &DaemonParts,
) -> anyhow::Result<()> {
    metrics::build::register(registry)?;
    metrics::store::register_feed(feed.clone(), registry)?;
    let router =
        admin::router(Admin { registry: registry.clone(), feed }).merge(parts.components.debug_routes());
    let router = TowerToHyperService::new(router);
    let serving = http::serve(listener, door, http::all_short, router, parts.shutdown.clone());
    parts.start("the metrics server", serving);
    Ok(())
}

/// Starts the lease, and the leader's components.
fn start_leadership(
    config: &Config,
    context: &ApiContext,
    cas: watch::Receiver<ManagerCas>,
    own_ports: Vec<OwnPort>,
    registry: &Registry,
    parts: &DaemonParts,
) -> anyhow::Result<watch::Receiver<Option<Leadership>>> {
    let manager = Manager {
        name: config.name.clone(),
        address: SocketAddr::new(config.advertise, config.advertise_port).to_string(),
        own_ports,
        tells_member_keys: true,
        ..Manager::default()
    };
    let (store, feed) = (&context.store, &context.feed);
    let (own_node, clocks) = (context.own_node.follow(), Arc::clone(&context.clocks));
    let (candidate, leadership) =
        Candidate::new(Arc::clone(store), feed.clone(), manager, own_node, cas, clocks);
    parts.start_server("the lease", candidate.run(parts.shutdown.clone()));
    let deposition =
        Deposition { store: Arc::clone(store), feed: feed.clone(), own_name: config.name.clone() };
    parts.start("the watch on the leader", deposition.run(parts.shutdown.clone()));
    let driver = Driver {
        store: Arc::clone(store),
        feed: feed.clone(),
        leadership: leadership.clone(),
        planners: planners::ORDER,
        metrics: crate::leader::metrics::ReconcileMetrics::register(registry)?,
        clock: Utc::now,
    };
    parts.start("the planners' driver", driver.run(parts.shutdown.clone()));
    metrics::cluster::register(feed.clone(), leadership.clone(), registry)?;
    upkeep::start(config, context, &leadership, registry, parts)?;
    Ok(leadership)
}
