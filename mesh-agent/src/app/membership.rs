//! The part of the agent that needs a cluster: joining, the link to managers, and the task worker.
//!
//! Invariant: what carries traffic never waits for this module.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use ipnet::Ipv4Net;
use mesh_runtime::Components;
use mesh_state::ids::TaskId;
use mesh_state::task::TaskStatus;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::QUEUE;
use super::carriers::MeshNetwork;
use super::described::DescriptionFollower;
use super::overlap::{HostNetworks, watch_overlaps};
use super::state::State;
use crate::config::{Config, mtu};
use crate::control_link::attach::Attacher;
use crate::control_link::identity::Identity;
use crate::control_link::join::Newcomer;
use crate::control_link::managers::Managers;
use crate::control_link::place::Place;
use crate::control_link::renewal::Renewal;
use crate::control_link::trusted_cas::ToldCas;
use crate::control_link::{AssignmentChange, Link, LinkChannels, join_any};
use crate::datapath::Datapath;
use crate::docker_api::{Attachments, ManagerRole, Promotion, Promotions, keep_attachments};
use crate::enrolment::address::MANAGER_PORT;
use crate::metrics::NodeFacts;
use crate::proxy::Proxy;
use crate::task::bridge::BridgePlan;
use crate::task::cache::TaskCache;
use crate::task::container_spec::NodeIdentity;
use crate::task::dependencies::Dependencies;
use crate::task::docker::DockerEngine;
use crate::task::engine_watch::watch_engine;
use crate::task::load::LoadMeter;
use crate::task::local::LocalTasks;
use crate::task::networks::keeper::Networks;
use crate::task::runtime::Runtime;
use crate::task::worker;
use crate::view::NodeView;

/// Bytes that the tunnel adds to a packet.
const TUNNEL_BYTES: u32 = 50;

/// How long managers must refuse this node as no member before it gives up its tasks and its table.
const EXPULSION_GRACE: Duration = Duration::from_secs(30);

/// The dependencies of this module.
pub(super) struct Membership {
    pub(super) config: Config,
    pub(super) identity: Option<Identity>,
    pub(super) state: State,
    pub(super) datapath: Option<Arc<Datapath>>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) datapath_name: &'static str,
    pub(super) node: watch::Sender<NodeFacts>,
    /// The addresses of this node's tasks.
    pub(super) local: Arc<LocalTasks>,
    /// What the node's socket shows: it takes what lets clients put containers on the cluster's
    /// networks, once this node is a member, and how far the manager on this node is.
    pub(super) shown: (Arc<ArcSwapOption<Attachments>>, Promotions),
}

impl Membership {
    /// Joins, if this node is no member yet, then starts the link and the task worker.
    ///
    /// # Errors
    /// The node can't join, or its state on disk can't be used.
    pub(super) async fn run(self, components: Components) -> anyhow::Result<()> {
        let shutdown = components.stopping().clone();
        let Some(identity) = self.identity(&shutdown).await? else { return Ok(()) };
        let role = identity.role()?;
        tracing::info!(node = %identity.node_id, role, "this node is a member");
        let node_id = identity.node_id.clone();
        self.state.view.send_if_modified(|view| {
            let changed = view.node_id != node_id;
            Arc::make_mut(view).node_id = node_id;
            changed
        });
        let engine = Arc::new(DockerEngine::new(self.config.engine.clone()));
        self.start(&components, identity, engine).await?;
        shutdown.cancelled().await;
        Ok(())
    }

    async fn identity(&self, shutdown: &CancellationToken) -> anyhow::Result<Option<Identity>> {
        if let Some(identity) = &self.identity {
            return Ok(Some(identity.clone()));
        }
        let token = self.config.join_token()?;
        tracing::info!(managers = ?self.config.managers, "join the cluster");
        let newcomer = Newcomer::from(self.config.name.as_str());
        let joined = join_any(&self.config.managers, &token, &newcomer, shutdown).await;
        if let Some(identity) = &joined {
            identity.store(&self.config.data_dir)?;
        }
        Ok(joined)
    }

    /// Starts measuring the loads of this node's tasks.
    fn measure_loads(&self, components: &Components) -> Arc<LoadMeter> {
        let meter = Arc::new(LoadMeter::default());
        let measuring = Arc::clone(&meter).run(
            self.state.view.subscribe(),
            Arc::clone(&self.state.loads),
            self.datapath.clone(),
            components.stopping().clone(),
        );
        components.spawn("load meter", async move {
            measuring.await;
            Ok(())
        });
        meter
    }

    async fn start(
        self,
        components: &Components,
        identity: Identity,
        engine: Arc<DockerEngine>,
    ) -> anyhow::Result<()> {
        let shutdown = components.stopping().clone();
        let (status_sender, statuses) = mpsc::channel(QUEUE);
        let (assignment_sender, assignments) = mpsc::channel(QUEUE);
        let bridge_mtu = mtu::of_uplink(self.config.address).saturating_sub(TUNNEL_BYTES);
        let views = self.state.view.subscribe();
        let (bridge_sender, bridge) = watch::channel(BridgePlan {
            subnet: views.borrow().subnet,
            with_ipv6: has_ipv6(),
            mtu: bridge_mtu,
        });
        components.spawn("task network", follow_subnet(views.clone(), bridge_sender, shutdown.clone()));

        let meter = self.measure_loads(components);
        let (unfit_sender, without_network) = watch::channel(None);
        let (overlaps, host_networks) = start_overlap_watch(components, self.state.view.subscribe());
        let networks = Arc::new(Networks::new(engine.clone(), bridge.clone()));
        let deps = worker::WorkerDeps {
            runtime: Arc::clone(&engine) as Arc<dyn Runtime>,
            networks: Arc::clone(&networks),
            network: Arc::new(MeshNetwork { datapath: self.datapath, proxy: Arc::clone(&self.proxy), meter }),
            local: self.local,
            node: node_of(&identity, &self.config),
            dependencies: Dependencies::new(self.config.task_files.clone()),
            bridge,
            unfit: unfit_sender,
            cache: TaskCache::open(self.config.task_cache()).context("open the cache of tasks")?,
        };
        start_worker(components, deps, assignments, status_sender);

        let engine_away = start_engine_watch(components, Arc::clone(&engine) as Arc<dyn Runtime>);
        let (managers, place) = keep_managers(components, &self.config).await?;
        let (trusted_cas, told) = watch::channel(None);
        let identity = keep_renewed(components, &self.config, managers.clone(), told, (identity, self.node));
        let described = DescriptionFollower {
            name: self.config.name.clone(),
            kernel: self.config.kernel.clone(),
            datapath: self.datapath_name,
            manager: self.config.manager_here(),
            own_ports: self.config.own_ports(),
            encryption: self.state.encryption,
            engine: Arc::<DockerEngine>::clone(&engine),
            without_network,
            overlaps,
            identity: identity.clone(),
        };
        let channels = LinkChannels {
            description: described.follow(components).await,
            statuses,
            assignments: assignment_sender,
            view: self.state.view,
            applied: self.state.applied,
            clashes: self.proxy.clashes(),
            host_networks,
            relay_keys: self.state.relay_keys,
            trusted_cas,
            connected: self.state.connected,
            expelled: self.state.expelled,
            expulsion_grace: EXPULSION_GRACE,
            loads: self.state.loads,
            logs: engine,
            engine_away,
        };
        let roles = (managers.clone(), identity.clone());
        start_manager_role(components, &self.config, &place, roles, self.shown.1)?;
        let attaching = (Attacher::new(managers.clone(), identity.clone()), networks, views);
        start_attachments(components, &self.shown.0, self.config.engine, attaching);
        start_link(components, Link::new(managers, identity, channels));
        Ok(())
    }
}

/// Starts bringing the node's tasks to the state that managers assign.
fn start_worker(
    components: &Components,
    deps: worker::WorkerDeps,
    assignments: mpsc::Receiver<AssignmentChange>,
    statuses: mpsc::Sender<(TaskId, TaskStatus)>,
) {
    let stop = components.stopping().clone();
    components.spawn("task worker", async move {
        worker::run(deps, assignments, statuses, stop).await;
        Ok(())
    });
}

/// Starts keeping sessions with managers.
fn start_link(components: &Components, link: Link) {
    let stop = components.stopping().clone();
    components.spawn("control link", async move {
        link.run(stop).await;
        Ok(())
    });
}

/// The node's properties for its containers' templates and labels.
fn node_of(identity: &Identity, config: &Config) -> NodeIdentity {
    NodeIdentity {
        id: identity.node_id.clone(),
        hostname: config.name.clone(),
        architecture: std::env::consts::ARCH.to_owned(),
        os: std::env::consts::OS.to_owned(),
    }
}

/// Starts comparing the host's networks with the tasks'. Returns the channels of why this node can
/// take no tasks because of them, and of the networks themselves.
fn start_overlap_watch(
    components: &Components,
    views: watch::Receiver<Arc<NodeView>>,
) -> (watch::Receiver<Option<String>>, watch::Receiver<Option<Vec<Ipv4Net>>>) {
    let (unfit, overlaps) = watch::channel(None);
    let (told, host_networks) = watch::channel(None);
    let stop = components.stopping().clone();
    components.spawn("overlap watch", async move {
        watch_overlaps(views, HostNetworks { unfit, told }, stop).await;
        Ok(())
    });
    (overlaps, host_networks)
}

/// Starts keeping the manager on this node, if there is one, what the node's role says.
fn start_manager_role(
    components: &Components,
    config: &Config,
    place: &Place,
    (managers, identity): (Managers, watch::Receiver<Identity>),
    promotions: Promotions,
) -> anyhow::Result<()> {
    let control = config.control_socket.clone();
    let is_manager = identity.borrow().role()? == "manager";
    promotions.send_replace(if is_manager { Promotion::Becoming } else { Promotion::Settled });
    let listen = place.listen.unwrap_or_else(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), MANAGER_PORT));
    let advertise = place.advertise.unwrap_or_else(|| SocketAddr::new(config.address.into(), listen.port()));
    let role = ManagerRole { control, managers, identity, advertise, listen, promotions };
    let stop = components.stopping().clone();
    components.spawn("manager's role", async move {
        role.keep(stop).await;
        Ok(())
    });
    Ok(())
}

/// Starts storing the managers that this node is told of. Returns them, and where the node is.
async fn keep_managers(components: &Components, config: &Config) -> anyhow::Result<(Managers, Place)> {
    let managers = Managers::from(config.managers.clone());
    let directory = config.data_dir.clone();
    let place = tokio::task::spawn_blocking(move || Place::load(&directory)).await??.unwrap_or_default();
    // A node that joins by its flags after it left has its note removed with the first write.
    let place = Place { left: false, ..place };
    let (directory, stop) = (config.data_dir.clone(), components.stopping().clone());
    let keeping = managers.clone().keep(directory, place.clone(), stop);
    components.spawn("managers' addresses", async move {
        keeping.await;
        Ok(())
    });
    Ok((managers, place))
}

/// Starts renewing the certificate. Returns the current identity.
fn keep_renewed(
    components: &Components,
    config: &Config,
    managers: Managers,
    told: watch::Receiver<Option<ToldCas>>,
    (identity, facts): (Identity, watch::Sender<NodeFacts>),
) -> watch::Receiver<Identity> {
    let stop = components.stopping();
    let (identity, renewed) = watch::channel(identity);
    let renewal = Renewal { managers, data_dir: config.data_dir.clone(), identity, told };
    let stopped = stop.clone();
    components.spawn("certificate", async move { Ok(renewal.run(stopped).await?) });
    components.spawn("certificate's facts", tell_facts(renewed.clone(), facts, stop.clone()));
    renewed
}

/// Lets clients put containers on the cluster's networks, and starts keeping track of these.
fn start_attachments(
    components: &Components,
    served: &ArcSwapOption<Attachments>,
    engine: PathBuf,
    (attacher, networks, views): (Attacher, Arc<Networks>, watch::Receiver<Arc<NodeView>>),
) {
    let attachments = Attachments::new(attacher, networks, views);
    served.store(Some(Arc::clone(&attachments)));
    let stop = components.stopping().clone();
    components.spawn("attachments", async move {
        keep_attachments(attachments, engine, stop).await;
        Ok(())
    });
}

/// Starts checking whether the engine answers; the receiver holds `true` while it does not.
fn start_engine_watch(components: &Components, engine: Arc<dyn Runtime>) -> watch::Receiver<bool> {
    let (away, engine_away) = watch::channel(false);
    let stop = components.stopping().clone();
    components.spawn("engine watch", async move {
        stop.run_until_cancelled(watch_engine(engine, away)).await;
        Ok(())
    });
    engine_away
}

/// Publishes the current certificate's properties for the metrics.
async fn tell_facts(
    mut identity: watch::Receiver<Identity>,
    facts: watch::Sender<NodeFacts>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut present = identity.borrow().certificate_pem.clone();
    loop {
        let (role, (_, until), is_renewed) = {
            let identity = identity.borrow_and_update();
            let is_renewed = identity.certificate_pem != present;
            present.clone_from(&identity.certificate_pem);
            (identity.role()?, identity.validity()?, is_renewed)
        };
        facts.send_modify(|facts| {
            facts.role = role;
            facts.certificate_until = Some(until);
            facts.certificate_renewals += u64::from(is_renewed);
        });
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            changed = identity.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Whether the node's kernel supports IPv6.
fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// Publishes the node's subnet for the component that makes the tasks' network.
async fn follow_subnet(
    mut views: watch::Receiver<Arc<NodeView>>,
    bridge: watch::Sender<BridgePlan>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let subnet: Option<Ipv4Net> = views.borrow_and_update().subnet;
        bridge.send_if_modified(|plan| {
            let changed = subnet.is_some() && plan.subnet != subnet;
            if changed {
                plan.subnet = subnet;
            }
            changed
        });
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            changed = views.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}
