//! What a manager with an etcd of its own does before that starts, while it runs, and after it.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_backup::Backup;
use mesh_runtime::Components;
use mesh_state::cluster::EtcdPlace;

use super::Served;
use super::init_desk::Beginning;
use crate::at_rest;
use crate::config::{Config, ManagedSettings};
use crate::leader::etcd_members::Members;
use crate::managed_etcd::{self, ManagedEtcd, authority, peer_url};
use crate::seal::Sealer;

/// Writes what the manager needs before etcd starts: the founding first, see
/// [`crate::founding::settle`]. Returns the sealer that opens etcd's CA, and the backup that is to
/// be restored.
pub(super) async fn prepare(
    config: &Config,
    etcd: &ManagedEtcd,
    beginning: Beginning,
) -> anyhow::Result<(Sealer, Option<Backup>)> {
    let (data, etcd) = (config.data_dir.clone(), etcd.clone());
    let unlock = config.unlock.clone();
    tokio::task::spawn_blocking(move || {
        let Beginning { founding, handover, backup } = beginning;
        founding.store(&data)?;
        if let Some(handover) = handover {
            handover.store(&data, &etcd.pki())?;
        }
        if let Some(backup) = &backup {
            Sealer::new(backup.key()).store(&data.join(at_rest::KEY_FILE), unlock.as_ref())?;
        }
        // A CA of etcd shows that the cluster has its key already.
        let sealer = at_rest::own_sealer(&data, unlock.as_ref(), !authority::exists(&etcd.pki()))?;
        etcd.prepare(&sealer)?;
        anyhow::Ok((sealer, backup))
    })
    .await?
}

/// Removes etcd's private keys from memory, where it no longer runs.
pub(super) async fn remove_keys(settings: &ManagedSettings) -> anyhow::Result<()> {
    let directory = settings.etcd_run_dir().to_owned();
    Ok(tokio::task::spawn_blocking(move || managed_etcd::remove_keys(&directory)).await??)
}

/// Starts what keeps etcd and its members in order.
pub(super) fn start_upkeep(config: &Config, parts: &Components, served: &Served) -> anyhow::Result<()> {
    let figures = managed_etcd::upkeep::Figures::register(&served.registry)?;
    let upkeep = managed_etcd::upkeep::run(Arc::clone(&served.etcd), figures, parts.stopping().clone());
    parts.spawn("etcd's upkeep", async move {
        upkeep.await;
        Ok(())
    });
    let members = Members {
        etcd: Arc::clone(&served.etcd),
        store: Arc::clone(&served.context.store),
        feed: served.context.feed.clone(),
        leadership: served.leadership.clone(),
        own_node: served.context.own_node.follow(),
        own: EtcdPlace {
            name: config.name.clone(),
            peer_url: peer_url(config.advertise),
            address: SocketAddr::new(config.advertise, config.advertise_port).to_string(),
        },
    };
    let stop = parts.stopping().clone();
    parts.spawn("etcd's members", async move {
        members.run(stop).await;
        Ok(())
    });
    Ok(())
}
