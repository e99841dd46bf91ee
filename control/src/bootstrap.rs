//! Creates the cluster's record if there is none, and opens it if there is one.
//!
//! Invariants: the record is created once, whichever manager is first; the key file is made only
//! for a cluster that doesn't exist yet; a manager without the right key file doesn't start; a
//! manager that has the key of a cluster waits for that cluster's record and makes no other one
//! unasked. `DATA/cluster-id` names its cluster; a key made for a cluster whose record may not be
//! in etcd yet is `DATA/key.new`.
//!
//! Left to others: carrying the key file (`DATA/key`, 32 bytes) from the first manager to the
//! others. It is the one secret that is not in etcd, so it must not go through etcd.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use mesh_runtime::private_file;
use mesh_state::Timestamp;
use mesh_state::cluster::{Cluster, heartbeat_period_ns, node_cert_expiry_ns};
use mesh_state::codec::{self, CodecError};
use mesh_state::ids::{self, ClusterId, NetworkId};
use mesh_state::keys;
use mesh_state::network::{Network, NetworkSpec};
use mesh_state::spec::Labels;
use mesh_state::store::{Compare, Op, Store, StoreError, TxnOutcome};
use rand::Rng as _;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::at_rest::{self, AtRestError};
use crate::ca::{self, CaError};
use crate::context::{CA_KEY, MANAGER_TOKEN, RELAY_KEY, TokenError, WORKER_TOKEN, join_tokens};
use crate::pool::{PoolError, WantedNetworkPool, WantedPool};
use crate::seal::key_file::{FRESH_KEY_FILE, KEY_FILE};
use crate::seal::unlock_key::UnlockKey;
use crate::seal::{SealError, Sealer};
use crate::trust::{Trust, TrustError};

/// Ended tasks kept in each slot, as in Swarm.
const TASK_HISTORY_LIMIT: u64 = 5;
/// The name of the network for published ports.
const INGRESS_NETWORK: &str = "ingress";
/// The length of the key that authenticates relay preambles, bytes.
pub const RELAY_KEY_BYTES: usize = 32;

/// Why this manager can't take part in the cluster.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// etcd refused a read or a write, or can't be reached.
    #[error("read or create the cluster's record")]
    Store(#[from] StoreError),
    /// The record can't be encoded or decoded.
    #[error("read or create the cluster's record")]
    Codec(#[from] CodecError),
    /// The cluster exists, and this manager has no key file.
    #[error(
        "this etcd holds a cluster already, and {} does not exist: copy the key file of another manager there (mode 0600), \
         or point --etcd at an empty etcd to make a new cluster",
        path.display()
    )]
    NoKey {
        /// The path of the missing key file.
        path: PathBuf,
    },
    /// There is the key file of a cluster, and etcd holds none.
    #[error(
        "etcd holds no cluster, and {} is the key of one: restore a backup of etcd, or name that cluster's etcd; \
         to give that cluster up and make a new one, give --new-cluster",
        key.display()
    )]
    Missing {
        /// The key file.
        key: PathBuf,
    },
    /// etcd holds another cluster than this manager's.
    #[error(
        "etcd holds cluster {found}, and this manager is of cluster {own}: name that cluster's etcd, or give this manager a data \
         directory of its own"
    )]
    OtherCluster {
        /// This manager's cluster.
        own: ClusterId,
        /// The cluster in etcd.
        found: ClusterId,
    },
    /// The key file can't be used, or doesn't open the record's secrets.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The CA can't be made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The cluster's CAs can't be loaded.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The cluster has another address pool than this manager's configuration.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The join tokens can't be read.
    #[error("read the join tokens")]
    Token(#[from] TokenError),
    /// A file of the data directory can't be written.
    #[error(transparent)]
    AtRest(#[from] AtRestError),
    /// The data directory can't be used.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation that failed.
        operation: &'static str,
        /// The file or directory of the operation.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: std::io::Error,
    },
}

impl BootstrapError {
    /// Whether a later attempt may succeed by itself.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Store(StoreError::Unavailable { .. } | StoreError::Deadline { .. })
                | Self::Missing { .. }
                | Self::OtherCluster { .. }
        )
    }
}

/// What a manager has after it has opened, or made, its cluster.
pub struct OpenedCluster {
    /// Seals and opens with the cluster's key.
    pub sealer: Sealer,
    /// Its CAs, ready to sign.
    pub trust: Trust,
    /// The cluster's record.
    pub cluster: Cluster,
    /// The store's revision at which the record was created.
    pub created: i64,
    /// The unlock key that opened the key file; `None` if that is in clear.
    pub lock: Option<UnlockKey>,
}

/// The settings of a cluster that has to be created.
#[derive(Debug, Clone)]
pub struct BootstrapOptions {
    /// The pool of tasks' addresses.
    pub pool: WantedPool,
    /// The pool of networks' subnets.
    pub network_pool: WantedNetworkPool,
    /// Whether a new cluster may be created though there is the key of another one.
    pub new_cluster: bool,
    /// The unlock key that opens the key file, if that is wrapped.
    pub unlock: Option<UnlockKey>,
}

impl From<WantedPool> for BootstrapOptions {
    fn from(pool: WantedPool) -> Self {
        Self { pool, network_pool: WantedNetworkPool::default(), new_cluster: false, unlock: None }
    }
}

/// A cluster's record, and its sealer.
struct Found {
    sealer: Sealer,
    cluster: Cluster,
    created: i64,
}

/// The files in a manager's data directory.
struct Files {
    key: PathBuf,
    /// The key of a cluster whose record may not be in etcd yet.
    fresh_key: PathBuf,
    /// The id of the key's cluster.
    cluster_id: PathBuf,
}

/// Opens the cluster in `store`, creates it if there is none, and writes the join tokens to
/// `data_dir`.
///
/// # Errors
/// [`BootstrapError`]; its text names the next step.
pub async fn open_cluster(
    store: &dyn Store,
    data_dir: &Path,
    wanted: impl Into<BootstrapOptions>,
    now: Timestamp,
) -> Result<OpenedCluster, BootstrapError> {
    let failed = |source| BootstrapError::File { operation: "create", path: data_dir.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
    let wanted = wanted.into();
    let files = Files {
        key: data_dir.join(KEY_FILE),
        fresh_key: data_dir.join(FRESH_KEY_FILE),
        cluster_id: data_dir.join("cluster-id"),
    };
    let Found { sealer, cluster, created } = match store.get(keys::CLUSTER).await? {
        Some(item) => {
            let cluster: Cluster = codec::decode(&item.value)?;
            let sealer = key_of(&cluster, &files, wanted.unlock.as_ref())?;
            Found { sealer, cluster, created: item.create_revision }
        }
        None if files.key.exists() && !wanted.new_cluster => {
            return Err(BootstrapError::Missing { key: files.key });
        }
        None => create_cluster(store, &files, &wanted, now).await?,
    };
    wanted.pool.check(&cluster)?;
    wanted.network_pool.check(&cluster)?;
    let trust = Trust::of(&cluster, &sealer)?;
    let tokens = join_tokens(&cluster, &sealer)?;
    at_rest::write_private(&files.cluster_id, cluster.id.as_str())?;
    at_rest::keep_tokens(data_dir, cluster.unlock_key.is_none().then_some(&tokens))?;
    Ok(OpenedCluster { sealer, trust, cluster, created, lock: wanted.unlock })
}

/// The sealer with the key of an existing cluster.
fn key_of(cluster: &Cluster, files: &Files, unlock: Option<&UnlockKey>) -> Result<Sealer, BootstrapError> {
    let known = read_cluster_id(&files.cluster_id)?;
    if let Some(own) = known.filter(|own| *own != cluster.id) {
        return Err(BootstrapError::OtherCluster { own, found: cluster.id.clone() });
    }
    if let Some(sealer) = Sealer::load(&files.key, unlock)? {
        return Ok(sealer);
    }
    // This manager may have created the cluster without getting etcd's answer.
    match Sealer::load(&files.fresh_key, None)? {
        Some(sealer) if sealer.open(CA_KEY, &cluster.ca_key).is_ok() => {
            keep_fresh_key(files)?;
            Ok(sealer)
        }
        _ => Err(BootstrapError::NoKey { path: files.key.clone() }),
    }
}

/// The cluster id beside the key, if this manager ever opened a cluster.
fn read_cluster_id(path: &Path) -> Result<Option<ClusterId>, BootstrapError> {
    match std::fs::read_to_string(path) {
        Ok(id) => Ok(Some(ClusterId::from(id.trim()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BootstrapError::File { operation: "read", path: path.to_owned(), source }),
    }
}

fn keep_fresh_key(files: &Files) -> Result<(), BootstrapError> {
    let failed = |source| BootstrapError::File { operation: "rename", path: files.fresh_key.clone(), source };
    private_file::rename(&files.fresh_key, &files.key).map_err(failed)
}

/// Creates the record, unless another manager is faster: then its record and its key apply.
async fn create_cluster(
    store: &dyn Store,
    files: &Files,
    wanted: &BootstrapOptions,
    now: Timestamp,
) -> Result<Found, BootstrapError> {
    let (sealer, is_fresh) = match Sealer::load(&files.key, wanted.unlock.as_ref())? {
        Some(sealer) => (sealer, false),
        None => match Sealer::load(&files.fresh_key, None)? {
            Some(sealer) => (sealer, true),
            None => (Sealer::create(&files.fresh_key)?, true),
        },
    };
    let cluster = new_cluster(&sealer, wanted, now)?;
    let network = Network {
        id: NetworkId::random(&mut rand::rng()),
        name: INGRESS_NETWORK.to_owned(),
        ingress: true,
        subnet: cluster.subnet_pool,
        subnet6: None,
        number: 0,
        node_addresses: BTreeMap::new(),
        created_at: now,
        spec: NetworkSpec::default(),
    };
    let name = keys::name("networks", INGRESS_NETWORK);
    let compares = vec![Compare::Absent(keys::CLUSTER.to_owned()), Compare::Absent(name.clone())];
    let ops = vec![
        Op::put(keys::CLUSTER, codec::encode(&cluster)?),
        Op::put(keys::network(&network.id), codec::encode(&network)?),
        Op::put(name, codec::encode(&network.id)?),
    ];
    match store.txn(compares, ops).await? {
        TxnOutcome::Committed(created) => {
            if is_fresh {
                keep_fresh_key(files)?;
            }
            tracing::info!(cluster = %cluster.id, revision = created, key = %files.key.display(), "made a new cluster; keep its key file safe");
            Ok(Found { sealer, cluster, created })
        }
        TxnOutcome::Conflict => {
            if is_fresh {
                let failed = |source| BootstrapError::File {
                    operation: "remove",
                    path: files.fresh_key.clone(),
                    source,
                };
                std::fs::remove_file(&files.fresh_key).map_err(failed)?;
            }
            Err(BootstrapError::NoKey { path: files.key.clone() })
        }
    }
}

fn new_cluster(
    sealer: &Sealer,
    wanted: &BootstrapOptions,
    now: Timestamp,
) -> Result<Cluster, BootstrapError> {
    let mut rng = rand::rng();
    let id = ClusterId::random(&mut rng);
    let authority = ca::create_authority(&id, now)?;
    let mut secret = |purpose| sealer.seal(purpose, Zeroizing::new(ids::random_text(&mut rng)).as_bytes());
    let (worker_token, manager_token) = (secret(WORKER_TOKEN)?, secret(MANAGER_TOKEN)?);
    let relay_key = Zeroizing::new(rng.random::<[u8; RELAY_KEY_BYTES]>());
    Ok(Cluster {
        id,
        created_at: now,
        subnet_pool: wanted.pool.pool(),
        subnet_prefix: wanted.pool.prefix(),
        network_pool: wanted.network_pool.pool(),
        network_prefix: wanted.network_pool.prefix(),
        task_history_limit: TASK_HISTORY_LIMIT,
        heartbeat_period_ns: heartbeat_period_ns(),
        node_cert_expiry_ns: node_cert_expiry_ns(),
        labels: Labels::new(),
        updated_at: None,
        ca_certificate_pem: authority.certificate_pem,
        ca_key: sealer.seal(CA_KEY, authority.key_pem.as_bytes())?,
        worker_token,
        manager_token,
        relay_key: sealer.seal(RELAY_KEY, relay_key.as_slice())?,
        unlock_key: None,
        ca_rotation: None,
        force_rotate: 0,
        revision_base: 0,
    })
}

#[cfg(test)]
mod tests;
