//! The etcd of this manager, for those who admit further ones.

use std::path::PathBuf;
use std::sync::Arc;

use mesh_state::store::EtcdStore;

/// The etcd that this manager runs.
#[derive(Clone)]
pub struct OwnEtcd {
    /// The client of that etcd.
    pub etcd: Arc<EtcdStore>,
    /// The directory of its CA.
    pub pki: PathBuf,
}
