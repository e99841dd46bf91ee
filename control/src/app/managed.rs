//! A manager with an etcd of its own: waits for `docker swarm init`, founds the cluster, and serves
//! it. A later start goes on with what was founded.
//!
//! Invariants: a cluster that can't be founded leaves nothing behind, and the manager waits again;
//! etcd ends after everything that uses it.

use std::os::unix::net::UnixListener as StdListener;
use std::time::Duration;

use anyhow::Context as _;
use mesh_runtime::{Components, follow_signals, supervisor, unix_socket};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    OWNERS_ALONE, SHUTDOWN_GRACE, Served, bind_tcp, init_desk, remove_socket, serve_cluster, unlock,
};
use crate::config::{Config, ManagedSettings};
use crate::founding::{self, Founding};
use crate::managed_etcd::{self, ManagedEtcd};

/// How long a new cluster may take until it serves.
const FOUNDING_LIMIT: Duration = Duration::from_secs(30);
/// How long etcd may take to end.
const ETCD_GRACE: Duration = Duration::from_secs(6);

/// Runs until it gets a signal to stop.
pub(super) async fn run(settings: ManagedSettings) -> anyhow::Result<()> {
    let components = Components::new(settings.debug_faults);
    let stop = components.stopping().clone();
    let socket = unix_socket::bind(&settings.socket, OWNERS_ALONE)
        .with_context(|| format!("listen on {}", settings.socket.display()))?
        .into_std()?;
    components.spawn("signals", follow_signals(stop.clone()));
    components.spawn("systemd", supervisor::keep_told(async {}, stop.clone()));
    let lived = live(&settings, &socket, &components).await;
    stop.cancel();
    let ended = components.wait(SHUTDOWN_GRACE).await;
    remove_socket(&settings.socket);
    lived.and(ended)
}

async fn live(
    settings: &ManagedSettings,
    socket: &StdListener,
    components: &Components,
) -> anyhow::Result<()> {
    let stop = components.stopping();
    let Some(opening) = unlock::opened(&settings.data_dir, &share(socket)?, stop).await? else {
        return Ok(());
    };
    let settings = &settings.unlocked_with(opening.key());
    loop {
        if let Some(founding) = Founding::load(&settings.data_dir)? {
            let begun = begin(settings, &founding, socket, components, None).await?;
            opening.serves();
            return go_on(begun, stop).await;
        }
        supervisor::tell_status("waits for docker swarm init");
        info!(socket = %settings.socket.display(), "no cluster yet: waits for docker swarm init on this node");
        let waiting = share(socket)?;
        let Some((founding, outcome)) = stop.run_until_cancelled(init_desk::wait(&waiting)).await else {
            return Ok(());
        };
        drop(waiting);
        match begin(settings, &founding, socket, components, Some(FOUNDING_LIMIT)).await {
            Ok(begun) => {
                let answer = json!({ "ManagerToken": begun.served.manager_token });
                if outcome.send(Ok(answer)).is_err() {
                    warn!("the client that made this cluster is gone");
                }
                return go_on(begun, stop).await;
            }
            Err(error) if stop.is_cancelled() => return Err(error),
            Err(error) => {
                warn!(error = format!("{error:#}"), "can't make a cluster: this manager waits again");
                let (data, etcd) = (settings.data_dir.clone(), settings.etcd_directory());
                tokio::task::spawn_blocking(move || founding::clear(&data, &etcd)).await??;
                if outcome.send(Err(format!("{error:#}"))).is_err() {
                    warn!("the client that wanted a cluster is gone");
                }
            }
        }
    }
}

/// A manager that serves its cluster.
struct Begun {
    /// Everything but etcd.
    parts: Components,
    etcd: Components,
    served: Served,
}

/// Starts etcd and all that uses it. What was started is ended again on an error.
async fn begin(
    settings: &ManagedSettings,
    founding: &Founding,
    socket: &StdListener,
    components: &Components,
    limit: Option<Duration>,
) -> anyhow::Result<Begun> {
    let config = settings.config(founding)?;
    let etcd = settings.etcd(founding);
    let (parts, own_etcd) = (components.phase(), Components::default());
    let started = Box::pin(start(&config, etcd, founding, socket, (&parts, &own_etcd), limit)).await;
    match started {
        Ok(served) => Ok(Begun { parts, etcd: own_etcd, served }),
        Err(error) => {
            let ended = end(parts, own_etcd).await;
            ended.context(format!("{error:#}"))?;
            Err(error)
        }
    }
}

async fn start(
    config: &Config,
    etcd: ManagedEtcd,
    founding: &Founding,
    socket: &StdListener,
    (parts, own_etcd): (&Components, &Components),
    limit: Option<Duration>,
) -> anyhow::Result<Served> {
    let listeners = bind_tcp(config, share(socket)?).await?;
    let (founding, data, preparing) = (founding.clone(), config.data_dir.clone(), etcd.clone());
    tokio::task::spawn_blocking(move || {
        founding.store(&data)?;
        preparing.prepare()?;
        anyhow::Ok(())
    })
    .await??;
    let (failure, failed) = watch::channel(None);
    let ends = own_etcd.stopping().clone();
    own_etcd.spawn("etcd", async move { Ok(managed_etcd::supervise(etcd, failure, ends).await?) });
    let serving = serve_cluster(config, listeners, parts);
    let served = tokio::select! {
        served = serving => served?,
        () = own_etcd.stopping().cancelled() => anyhow::bail!("etcd can't be started: is the package etcd-server installed?"),
        () = late(limit) => {
            let reason = failed.borrow().clone().unwrap_or_else(|| "etcd doesn't answer".to_owned());
            anyhow::bail!("the cluster doesn't serve within {} s: {reason}", FOUNDING_LIMIT.as_secs());
        }
    };
    let served = served.context("this manager stops")?;
    let upkeep = managed_etcd::upkeep::run(served.etcd.clone(), parts.stopping().clone());
    parts.spawn("etcd's upkeep", async move {
        upkeep.await;
        Ok(())
    });
    Ok(served)
}

/// Serves until the process stops, or until a part or etcd fails.
async fn go_on(begun: Begun, stop: &CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => {}
        () = begun.parts.stopping().cancelled() => {}
        () = begun.etcd.stopping().cancelled() => {}
    }
    end(begun.parts, begun.etcd).await
}

/// Ends everything, etcd last.
async fn end(parts: Components, etcd: Components) -> anyhow::Result<()> {
    parts.stopping().cancel();
    let parts = parts.wait(SHUTDOWN_GRACE).await;
    etcd.stopping().cancel();
    let etcd = etcd.wait(ETCD_GRACE).await;
    parts.and(etcd)
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
