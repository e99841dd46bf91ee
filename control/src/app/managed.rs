//! A manager with an etcd of its own: waits for `docker swarm init` or `join`, founds the cluster
//! or takes its place in one, and serves it, until it is to give its place up. A later start goes
//! on with what was begun.
//!
//! Invariants: a cluster that can't be founded or joined leaves nothing behind, and the manager
//! waits again; etcd ends after everything that uses it.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_runtime::reload::Reloader;
use mesh_runtime::{Components, follow_signals, supervisor, unix_socket};
use mesh_state::store::EtcdStore;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::init_desk::Beginning;
use super::unlock::{Opening, Start};
use super::{
    Managed, OWNERS_ALONE, SHUTDOWN_GRACE, beginning, bind_tcp, init_desk, own_etcd, remove_socket,
    serve_cluster, unlock,
};
use crate::config::{Config, ManagedSettings};
use crate::context::ApiContext;
use crate::founding::{self, Founding};
use crate::managed_etcd::resignation::{self, Outcome};
use crate::managed_etcd::{self, ManagedEtcd, peer_url};
use crate::orders::{ManagerOrder, Orders};

/// How long a new cluster may take until it serves.
const FOUNDING_LIMIT: Duration = Duration::from_secs(30);
/// How long joining a cluster may take until this manager serves it.
const JOINING_LIMIT: Duration = Duration::from_mins(1);
/// How long etcd may take to end.
const ETCD_GRACE: Duration = Duration::from_secs(6);

/// Runs until it gets a signal to stop; `reloader` reads the settings again.
pub(super) async fn run(settings: ManagedSettings, reloader: Reloader) -> anyhow::Result<()> {
    let components = Components::new(settings.debug_faults);
    let stop = components.stopping().clone();
    let socket = unix_socket::bind(&settings.socket, OWNERS_ALONE)
        .with_context(|| format!("listen on {}", settings.socket.display()))?
        .into_std()?;
    components.spawn("signals", follow_signals(stop.clone(), reloader));
    components.spawn("systemd", supervisor::keep_told(async {}, stop.clone()));
    let (orders, ordered) = mpsc::channel(1);
    let socket_path = settings.socket.clone();
    let mut life = Life { settings, socket: &socket, components: &components, orders };
    let lived = life.live(ordered).await;
    stop.cancel();
    let removed = own_etcd::remove_keys(&life.settings).await;
    let ended = components.wait(SHUTDOWN_GRACE).await;
    remove_socket(&socket_path);
    lived.and(ended).and(removed)
}

/// What lives as long as the process.
struct Life<'a> {
    /// What it was started with, and the unlock key of the key file, if that is wrapped.
    settings: ManagedSettings,
    socket: &'a StdListener,
    components: &'a Components,
    orders: Orders,
}

/// What runs of a manager.
struct Running {
    /// Everything but etcd.
    parts: Components,
    own_etcd: Components,
}

impl Running {
    /// Ends everything, etcd last.
    async fn end(self) -> anyhow::Result<()> {
        let parts = self.end_parts().await;
        self.own_etcd.stopping().cancel();
        let etcd = self.own_etcd.wait(ETCD_GRACE).await;
        parts.and(etcd)
    }

    /// Ends everything but etcd.
    async fn end_parts(&self) -> anyhow::Result<()> {
        self.parts.stopping().cancel();
        self.parts.clone().wait(SHUTDOWN_GRACE).await
    }
}

/// How a beginning went.
enum Begun {
    /// The cluster is served; the token with which the node on this machine joins as a manager.
    Serves(String, Box<ApiContext>),
    /// An order came before.
    Ordered(ManagerOrder),
}

/// How a beginning is meant.
#[derive(Debug, Clone, Copy, Default)]
struct Manner {
    /// How long it may take; `None`: for ever.
    limit: Option<Duration>,
    /// Whether etcd forgets its other members.
    force_new_cluster: bool,
}

impl Life<'_> {
    async fn live(&mut self, mut ordered: mpsc::Receiver<ManagerOrder>) -> anyhow::Result<()> {
        let stop = self.components.stopping();
        let waiting = share(self.socket)?;
        // Those of a process that was killed: nobody needs them while this one is locked.
        own_etcd::remove_keys(&self.settings).await?;
        let mut opening = match unlock::opened(&self.settings.data_dir, &waiting, true, stop).await? {
            Start::Opened(opening) => Some(opening),
            Start::Leaves => {
                warn!("by order, this manager leaves its cluster while it is locked");
                self.clear().await?;
                None
            }
            Start::Stops => return Ok(()),
        };
        drop(waiting);
        self.settings = self.settings.unlocked_with(opening.as_ref().and_then(Opening::key));
        let mut manner = Manner::default();
        loop {
            let Some((founding, running, begun)) = self.next(manner, &mut ordered).await? else {
                return Ok(());
            };
            manner = Manner::default();
            let order = match begun {
                Begun::Ordered(order) => Some(order),
                Begun::Serves(_, context) => {
                    opening.take().into_iter().for_each(Opening::serves);
                    let order = serve(&running, &mut ordered, stop).await;
                    // The key file may have been wrapped, or its wrapping changed, since the start.
                    self.settings = self.settings.unlocked_with(context.unlock_key());
                    order
                }
            };
            match order {
                None => return running.end().await,
                Some(ManagerOrder::Resign { force }) => {
                    if self.resign(running, &founding, force).await? {
                        self.settings = self.settings.unlocked_with(None);
                    }
                }
                Some(ManagerOrder::ForceNewCluster) => {
                    warn!("by order, this manager becomes the only one of its cluster");
                    end_or_warn(running).await;
                    manner.force_new_cluster = true;
                }
            }
        }
    }

    /// Begins with what is on the disk, or with what a client asks for. Returns `None` when the
    /// process stops.
    async fn next(
        &self,
        manner: Manner,
        ordered: &mut mpsc::Receiver<ManagerOrder>,
    ) -> anyhow::Result<Option<(Founding, Running, Begun)>> {
        let stop = self.components.stopping();
        loop {
            let (data, etcd) = (self.settings.data_dir.clone(), self.settings.etcd_directory());
            let found = tokio::task::spawn_blocking(move || founding::settle(&data, &etcd)).await??;
            let Some(founding) = found else {
                match self.wait(ordered).await? {
                    Some(begun) => return Ok(Some(begun)),
                    None if stop.is_cancelled() => return Ok(None),
                    None => continue,
                }
            };
            let joins = founding.joins.is_some();
            let manner = Manner { limit: joins.then_some(JOINING_LIMIT), ..manner };
            let beginning = Beginning { founding, handover: None, backup: None };
            match self.begin(beginning, manner, ordered).await {
                Err(_) if stop.is_cancelled() => return Ok(None),
                Err(error) if joins => {
                    warn!(error = format!("{error:#}"), "can't join the cluster: this manager waits again");
                    self.clear().await?;
                }
                begun => return begun.map(Some),
            }
        }
    }

    /// Waits for a client that gives this manager a cluster. Returns `None` if there is no cluster
    /// then, or the process stops.
    async fn wait(
        &self,
        ordered: &mut mpsc::Receiver<ManagerOrder>,
    ) -> anyhow::Result<Option<(Founding, Running, Begun)>> {
        let stop = self.components.stopping();
        supervisor::tell_status("waits for docker swarm init or join");
        info!(
            socket = %self.settings.socket.display(),
            "no cluster yet: waits for docker swarm init or join on this node"
        );
        // An order that came twice was for what this manager was.
        while ordered.try_recv().is_ok() {}
        let waiting = share(self.socket)?;
        let asked = stop.run_until_cancelled(init_desk::wait(&waiting, &self.settings.name)).await;
        let Some((beginning, outcome)) = asked else { return Ok(None) };
        drop(waiting);
        let is_empty = beginning.handover.is_none() && beginning.backup.is_none();
        let limit = if is_empty { FOUNDING_LIMIT } else { JOINING_LIMIT };
        let manner = Manner { limit: Some(limit), ..Manner::default() };
        let told = match self.begin(beginning, manner, ordered).await {
            Ok(begun) => {
                let answer = match &begun.2 {
                    Begun::Serves(token, _) => Ok(json!({ "ManagerToken": token })),
                    Begun::Ordered(_) => Err("another call ended the attempt".to_owned()),
                };
                (Some(begun), answer)
            }
            Err(error) if stop.is_cancelled() => return Err(error),
            Err(error) => {
                warn!(error = format!("{error:#}"), "there is no cluster: this manager waits again");
                self.clear().await?;
                (None, Err(format!("{error:#}")))
            }
        };
        let (begun, answer) = told;
        if outcome.send(answer).is_err() {
            warn!("the client that gave this manager a cluster is gone");
        }
        Ok(begun)
    }

    /// Starts etcd and all that uses it. What was started is ended again on an error.
    async fn begin(
        &self,
        beginning: Beginning,
        manner: Manner,
        ordered: &mut mpsc::Receiver<ManagerOrder>,
    ) -> anyhow::Result<(Founding, Running, Begun)> {
        let mut founding = beginning.founding.clone();
        let mut config = self.settings.config(&founding)?;
        if beginning.handover.is_some() || beginning.backup.is_some() {
            config.unlock = beginning::unlock_key(&beginning)?;
        }
        let force_new_cluster = manner.force_new_cluster;
        let etcd = ManagedEtcd { force_new_cluster, ..self.settings.etcd(&founding) };
        let running = Running { parts: self.components.phase(), own_etcd: Components::default() };
        let begun = {
            let starting = self.start(&config, etcd, beginning, &running, manner.limit);
            tokio::select! {
                started = Box::pin(starting) => started.map(|(token, context)| Begun::Serves(token, Box::new(context))),
                Some(order) = ordered.recv() => Ok(Begun::Ordered(order)),
            }
        };
        founding.restores = false;
        let has_joined = founding.joins.is_some() && matches!(begun, Ok(Begun::Serves(..)));
        let kept = if has_joined {
            founding.joins = None;
            let (founding, data) = (founding.clone(), config.data_dir.clone());
            tokio::task::spawn_blocking(move || founding.store(&data)).await?.map_err(anyhow::Error::from)
        } else {
            Ok(())
        };
        match kept.and(begun) {
            Ok(begun) => Ok((founding, running, begun)),
            Err(error) => {
                let ended = running.end().await;
                ended.context(format!("{error:#}"))?;
                Err(error)
            }
        }
    }

    /// Starts everything. Returns the managers' join token, and the cluster, once it is served.
    async fn start(
        &self,
        config: &Config,
        etcd: ManagedEtcd,
        beginning: Beginning,
        running: &Running,
        limit: Option<Duration>,
    ) -> anyhow::Result<(String, ApiContext)> {
        let (parts, etcd_part) = (&running.parts, &running.own_etcd);
        let listeners = bind_tcp(config, share(self.socket)?).await?;
        let founding = beginning.founding.clone();
        let (sealer, backup) = own_etcd::prepare(config, &etcd, beginning).await?;
        let managed = Managed { pki: etcd.pki(), orders: self.orders.clone() };
        let (failure, failed) = watch::channel(None);
        let ends = etcd_part.stopping().clone();
        etcd_part.spawn("etcd", async move {
            Ok(managed_etcd::supervise(etcd, Arc::new(sealer), failure, ends).await?)
        });
        let serving = async {
            if let Some(backup) = &backup {
                beginning::restore(config, &founding, backup).await?;
            }
            serve_cluster(config, listeners, parts, Some(managed)).await
        };
        let served = tokio::select! {
            served = serving => served?,
            () = etcd_part.stopping().cancelled() => anyhow::bail!("etcd can't be started: is the package etcd-server installed?"),
            () = late(limit) => {
                let reason = failed.borrow().clone().unwrap_or_else(|| "etcd doesn't answer".to_owned());
                let seconds = limit.unwrap_or_default().as_secs();
                anyhow::bail!("the cluster doesn't serve within {seconds} s: {reason}");
            }
        };
        let served = served.context("this manager stops")?;
        own_etcd::start_upkeep(config, parts, &served)?;
        Ok((served.manager_token, served.context))
    }

    /// Gives up this manager's place in etcd, removes what it has of the cluster, and lets it wait
    /// again. The last manager goes on instead, unless by force. Returns whether it waits.
    async fn resign(&self, running: Running, founding: &Founding, force: bool) -> anyhow::Result<bool> {
        info!(force, "this manager gives up its place");
        if let Err(error) = running.end_parts().await {
            warn!(error = format!("{error:#}"), "a part of this manager did not end in order");
        }
        let etcd = self.settings.etcd(founding);
        let store = EtcdStore::open(etcd.access()).await?;
        let outcome = resignation::resign(&store, &peer_url(etcd.advertise), force).await;
        drop(store);
        end_or_warn(running).await;
        if outcome == Outcome::Last && !force {
            warn!("this is the last manager of its cluster: it stays one");
            return Ok(false);
        }
        info!(?outcome, "this manager is none any more: remove the cluster's state from it");
        self.clear().await.map(|()| true)
    }

    /// Removes what belongs to a cluster.
    async fn clear(&self) -> anyhow::Result<()> {
        own_etcd::remove_keys(&self.settings).await?;
        let (data, etcd) = (self.settings.data_dir.clone(), self.settings.etcd_directory());
        Ok(tokio::task::spawn_blocking(move || founding::clear(&data, &etcd)).await??)
    }
}

/// Serves until the process stops, a part or etcd fails, or an order comes, which it returns.
async fn serve(
    running: &Running,
    ordered: &mut mpsc::Receiver<ManagerOrder>,
    stop: &CancellationToken,
) -> Option<ManagerOrder> {
    tokio::select! {
        () = stop.cancelled() => None,
        () = running.parts.stopping().cancelled() => None,
        () = running.own_etcd.stopping().cancelled() => None,
        order = ordered.recv() => order,
    }
}

async fn end_or_warn(running: Running) {
    if let Err(error) = running.end().await {
        warn!(error = format!("{error:#}"), "a part of this manager did not end in order");
    }
}

async fn late(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Another handle of the listening socket: the parts that serve it come and go.
fn share(socket: &StdListener) -> anyhow::Result<UnixListener> {
    let socket = socket.try_clone().context("share the control socket")?;
    Ok(UnixListener::from_std(socket)?)
}
