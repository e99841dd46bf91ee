//! How a manager with an etcd of its own begins with what others have: a backup, which it writes to
//! the new etcd before that is served, or a cluster's keys.

use std::time::Duration;

use anyhow::Context as _;
use chrono::Utc;
use mesh_backup::Backup;
use mesh_runtime::backoff::Backoff;
use mesh_runtime::error_chain;
use mesh_state::store::{EtcdStore, StoreError};
use mesh_state::{codec, keys};
use tracing::{debug, info};

use super::init_desk::Beginning;
use crate::config::Config;
use crate::context;
use crate::founding::Founding;
use crate::refill::{RefillError, refill};
use crate::seal::Sealer;
use crate::seal::unlock_key::UnlockKey;

/// The shortest pause between attempts to reach the new etcd.
const PAUSE_SHORTEST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// The unlock key of the cluster that a manager becomes a part of, or that is restored; `None`
/// without autolock, and for a cluster that is new.
pub(super) fn unlock_key(beginning: &Beginning) -> anyhow::Result<Option<UnlockKey>> {
    if let Some(handover) = &beginning.handover {
        return Ok(handover.unlock_key()?);
    }
    let Some(backup) = &beginning.backup else { return Ok(None) };
    let record = backup.entries().iter().find(|entry| entry.key == keys::CLUSTER);
    let record = record.ok_or(RefillError::NoCluster)?;
    let cluster = codec::decode(&record.value).context("read the cluster's record in the backup")?;
    Ok(context::unlock_key(&cluster, &Sealer::new(backup.key()))?)
}

/// Restores `backup` into the manager's new etcd, once that answers, and says so in the founding: a
/// start from then on goes on with the cluster.
pub(super) async fn restore(config: &Config, founding: &Founding, backup: &Backup) -> anyhow::Result<()> {
    let store = EtcdStore::open(config.etcd.clone()).await?;
    let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
    let mut repeats = false;
    loop {
        match refill(&store, backup, Utc::now()).await {
            // The answer to the last write of the attempt before was lost.
            Err(RefillError::Taken) if repeats => break,
            Err(RefillError::Store(
                error @ (StoreError::Unavailable { .. } | StoreError::Deadline { .. }),
            )) => {
                debug!(error = error_chain(&error), "the new etcd does not answer yet");
                repeats = true;
                tokio::time::sleep(backoff.pause(&mut rand::rng())).await;
            }
            refilled => {
                refilled.context("restore the backup")?;
                break;
            }
        }
    }
    let (founding, data) = (Founding { restores: false, ..founding.clone() }, config.data_dir.clone());
    tokio::task::spawn_blocking(move || founding.store(&data)).await??;
    let manifest = backup.manifest();
    info!(cluster = %manifest.cluster, keys = manifest.keys, taken_at = %manifest.taken_at, "restored a backup");
    Ok(())
}
