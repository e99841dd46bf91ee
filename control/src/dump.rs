//! Makes a backup of the cluster: all of its state at one revision.

use mesh_backup::content::Origin;
use mesh_backup::{Backup, BackupError, Entry, families};
use mesh_state::Timestamp;
use mesh_state::ids::ClusterId;
use mesh_state::keys;
use mesh_state::store::{Store, StoreError};
use thiserror::Error;

use crate::seal::Sealer;

/// Why there is no backup.
#[derive(Debug, Error)]
pub enum DumpError {
    /// etcd refused a read or a write, or can't be reached.
    #[error("read the cluster's state")]
    Store(#[from] StoreError),
    /// There is too much of it.
    #[error(transparent)]
    Backup(#[from] BackupError),
}

/// A backup of `cluster`, whose key `sealer` has, made by the manager `manager`.
///
/// # Errors
/// [`DumpError`].
pub async fn dump(
    store: &dyn Store,
    sealer: &Sealer,
    cluster: ClusterId,
    manager: &str,
    now: Timestamp,
) -> Result<Backup, DumpError> {
    let listing = store.list(keys::EVERYTHING).await?;
    let state = listing.items.into_iter().filter(|item| families::is_state(&item.key));
    let entries = state.map(|item| Entry { key: item.key, value: item.value }).collect();
    let origin = Origin {
        cluster,
        revision: listing.revision,
        mesh: env!("CARGO_PKG_VERSION").to_owned(),
        manager: manager.to_owned(),
        now,
    };
    Ok(Backup::new(origin, sealer.key().clone(), entries)?)
}
