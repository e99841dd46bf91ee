//! A backup as a cluster: its snapshot, and the data of its secrets and configs, sealed with this
//! cluster's key.

use std::collections::BTreeMap;

use mesh_backup::Backup;
use mesh_runtime::error_chain;
use mesh_state::cluster::Sealed;
use mesh_state::dependency::DependencyKind;
use mesh_state::ids::{ClusterId, DependencyId};
use mesh_state::keys;
use mesh_state::service::Service;
use mesh_state::store::KeyValue;

use crate::api::error::ApiError;
use crate::context::REGISTRY_AUTH;
use crate::feed::snapshot::ClusterSnapshot;
use crate::seal::{SealError, Sealer};
use crate::vault;

/// What is to be restored.
#[derive(Debug)]
pub(super) struct Saved {
    /// The cluster of the backup.
    pub(super) snapshot: ClusterSnapshot,
    /// Whether that is this cluster, so that its settings, its tokens and its nodes are meant.
    pub(super) is_own: bool,
    /// Secrets' and configs' data, as this cluster stores it.
    sealed: BTreeMap<(DependencyKind, DependencyId), Vec<u8>>,
    /// The keys with which a foreign cluster's credentials are sealed anew.
    foreign: Option<(Sealer, Sealer)>,
}

impl Saved {
    /// Reads `backup` for the cluster `own`, whose key `sealer` has.
    ///
    /// # Errors
    /// It has objects that this version can't read, or data that its key doesn't open.
    pub(super) fn read(backup: &Backup, sealer: &Sealer, own: &ClusterId) -> Result<Self, ApiError> {
        let is_same_key = backup.key() == sealer.key();
        let foreign = (!is_same_key).then(|| (Sealer::new(backup.key()), Sealer::new(sealer.key())));
        let revision = backup.manifest().revision;
        let (mut items, mut contents) = (Vec::new(), BTreeMap::new());
        for entry in backup.entries() {
            if let Some((kind, id)) = keys::parse_sealed(&entry.key) {
                let data = match &foreign {
                    Some((from, to)) => vault::seal_anew(from, to, kind, &id, &entry.value)?,
                    None => entry.value.clone(),
                };
                contents.insert((kind, id), data);
                continue;
            }
            items.push(KeyValue {
                key: entry.key.clone(),
                value: entry.value.clone(),
                create_revision: revision,
                mod_revision: revision,
            });
        }
        let snapshot = ClusterSnapshot::from_listing(revision, items);
        if let Some((key, error)) = snapshot.unreadable.first_key_value() {
            return Err(ApiError::BadRequest(format!("the backup can't be read: {key}: {error}")));
        }
        Ok(Self {
            snapshot,
            is_own: backup.manifest().cluster == *own && is_same_key,
            sealed: contents,
            foreign,
        })
    }

    /// The stored data of a secret or config.
    pub(super) fn data(&self, kind: DependencyKind, id: &DependencyId) -> Option<&Vec<u8>> {
        self.sealed.get(&(kind, id.clone()))
    }

    /// A service with credentials that this cluster's key opens.
    ///
    /// # Errors
    /// The backup's key doesn't open its credentials.
    pub(super) fn service(&self, service: &Service) -> Result<Service, ApiError> {
        let registry_auth = match (&self.foreign, &service.registry_auth) {
            (Some((from, to)), Some(sealed)) => Some(anew(from, to, sealed)?),
            (_, present) => present.clone(),
        };
        Ok(Service { registry_auth, ..service.clone() })
    }
}

fn anew(from: &Sealer, to: &Sealer, sealed: &Sealed) -> Result<Sealed, ApiError> {
    let resealed = from.open(REGISTRY_AUTH, sealed).and_then(|opened| to.seal(REGISTRY_AUTH, &opened));
    resealed.map_err(|error: SealError| ApiError::Unseal(error_chain(&error)))
}
