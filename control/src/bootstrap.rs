//! Makes the cluster's record when there is none, and opens it when there is one.
//!
//! Invariants: the record is created once, whoever comes first; the key file is made only for a cluster that doesn't exist yet; a
//! manager without the right key file doesn't start.
//!
//! Left to others: carrying the key file (`DATA/key`, 32 bytes) from the first manager to the others. It is the one secret that is
//! not in etcd, so it must not go through etcd.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mesh_state::Timestamp;
use mesh_state::cluster::{Cluster, heartbeat_period_ns};
use mesh_state::codec::{self, CodecError};
use mesh_state::ids::{self, ClusterId, NetworkId};
use mesh_state::keys;
use mesh_state::network::{Network, NetworkSpec};
use mesh_state::spec::Labels;
use mesh_state::store::{Compare, Op, Store, StoreError, TxnOutcome};
use rand::Rng as _;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::ca::token::JoinTokens;
use crate::ca::{self, Authority, CaError};
use crate::context::{ApiContext, CA_KEY, MANAGER_TOKEN, RELAY_KEY, TokenError, WORKER_TOKEN, join_tokens};
use crate::pool::{PoolError, WantedPool};
use crate::seal::{SealError, Sealer};

/// Terminal tasks kept in each slot, as Swarm keeps.
const TASK_HISTORY_LIMIT: u64 = 5;
/// The network of published ports.
const INGRESS_NETWORK: &str = "ingress";
/// Bytes of the key that authenticates relay preambles.
pub const RELAY_KEY_BYTES: usize = 32;

/// Why this manager can't take part in the cluster.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// etcd failed.
    #[error("read or create the cluster's record")]
    Store(#[from] StoreError),
    /// The record can't be read or written.
    #[error("read or create the cluster's record")]
    Codec(#[from] CodecError),
    /// The cluster exists, and this manager has no key to it.
    #[error(
        "this etcd holds a cluster already, and {} does not exist: copy the key file of another manager there (mode 0600), \
         or point --etcd at an empty etcd to make a new cluster",
        path.display()
    )]
    NoKey {
        /// Where the key file is expected.
        path: PathBuf,
    },
    /// The key file or what it seals.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The cluster has another pool than this manager was told.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The join tokens.
    #[error("read the join tokens")]
    Token(#[from] TokenError),
    /// The data directory can't be used.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl BootstrapError {
    /// Whether a later attempt may succeed by itself.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(StoreError::Unavailable { .. } | StoreError::Deadline { .. }))
    }
}

/// The cluster, opened.
pub struct OpenedCluster {
    /// Seals and opens with the cluster's key.
    pub sealer: Sealer,
    /// The CA, ready to sign.
    pub authority: Authority,
    /// The cluster's record.
    pub cluster: Cluster,
}

/// Opens the cluster of `store`, making it if there is none, and writes the join tokens to `data_dir`.
///
/// # Errors
/// [`BootstrapError`]; its text says what to do.
pub async fn open_cluster(
    store: &dyn Store,
    data_dir: &Path,
    pool: WantedPool,
    now: Timestamp,
) -> Result<OpenedCluster, BootstrapError> {
    let failed = |source| BootstrapError::File { operation: "create", path: data_dir.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
    let key_path = data_dir.join("key");
    let (sealer, cluster) = match store.get(keys::CLUSTER).await? {
        Some(item) => (load_key(&key_path)?, codec::decode(&item.value)?),
        None => create_cluster(store, &key_path, pool, now).await?,
    };
    pool.check(&cluster)?;
    let ca_key = sealer.open(CA_KEY, &cluster.ca_key)?;
    let ca_key = Zeroizing::new(String::from_utf8_lossy(&ca_key).into_owned());
    let authority = Authority::load(&cluster.ca_certificate_pem, &ca_key)?;
    let tokens = join_tokens(&cluster, &sealer)?;
    write_tokens(data_dir, &tokens)?;
    Ok(OpenedCluster { sealer, authority, cluster })
}

/// Keeps the join tokens' files in `data_dir` true when tokens are rotated, until `shutdown`.
pub async fn keep_token_files(data_dir: PathBuf, context: ApiContext, shutdown: CancellationToken) {
    let mut snapshots = context.feed.snapshots.clone();
    let mut written = None;
    loop {
        let revision = snapshots.borrow_and_update().cluster.as_ref().map(|cluster| cluster.mod_revision);
        if revision.is_some() && revision != written {
            let tokens = context.join_tokens().map_err(BootstrapError::from);
            match tokens.and_then(|tokens| write_tokens(&data_dir, &tokens)) {
                Ok(()) => written = revision,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "keep the join tokens' files");
                }
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

fn write_tokens(data_dir: &Path, tokens: &JoinTokens) -> Result<(), BootstrapError> {
    write_private(&data_dir.join("join-token-worker"), &tokens.worker)?;
    write_private(&data_dir.join("join-token-manager"), &tokens.manager)
}

fn load_key(path: &Path) -> Result<Sealer, BootstrapError> {
    Sealer::load(path)?.ok_or_else(|| BootstrapError::NoKey { path: path.to_owned() })
}

/// Makes the record, unless another manager is faster: then its record counts, and its key.
async fn create_cluster(
    store: &dyn Store,
    key_path: &Path,
    pool: WantedPool,
    now: Timestamp,
) -> Result<(Sealer, Cluster), BootstrapError> {
    let existing = Sealer::load(key_path)?;
    let made_key = existing.is_none();
    let sealer = match existing {
        Some(sealer) => sealer,
        None => Sealer::create(key_path)?,
    };
    let cluster = new_cluster(&sealer, pool, now)?;
    let network = Network {
        id: NetworkId::random(&mut rand::rng()),
        name: INGRESS_NETWORK.to_owned(),
        ingress: true,
        subnet: cluster.subnet_pool,
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
        TxnOutcome::Committed(revision) => {
            tracing::info!(cluster = %cluster.id, revision, key = %key_path.display(), "made a new cluster; keep its key file safe");
            Ok((sealer, cluster))
        }
        TxnOutcome::Conflict => {
            if made_key {
                let failed =
                    |source| BootstrapError::File { operation: "remove", path: key_path.to_owned(), source };
                std::fs::remove_file(key_path).map_err(failed)?;
            }
            Err(BootstrapError::NoKey { path: key_path.to_owned() })
        }
    }
}

fn new_cluster(sealer: &Sealer, pool: WantedPool, now: Timestamp) -> Result<Cluster, BootstrapError> {
    let mut rng = rand::rng();
    let id = ClusterId::random(&mut rng);
    let authority = ca::create_authority(&id, now)?;
    let mut secret = |purpose| sealer.seal(purpose, Zeroizing::new(ids::random_text(&mut rng)).as_bytes());
    let (worker_token, manager_token) = (secret(WORKER_TOKEN)?, secret(MANAGER_TOKEN)?);
    let relay_key = Zeroizing::new(rng.random::<[u8; RELAY_KEY_BYTES]>());
    Ok(Cluster {
        id,
        created_at: now,
        subnet_pool: pool.pool(),
        subnet_prefix: pool.prefix(),
        task_history_limit: TASK_HISTORY_LIMIT,
        heartbeat_period_ns: heartbeat_period_ns(),
        labels: Labels::new(),
        updated_at: None,
        ca_certificate_pem: authority.certificate_pem,
        ca_key: sealer.seal(CA_KEY, authority.key_pem.as_bytes())?,
        worker_token,
        manager_token,
        relay_key: sealer.seal(RELAY_KEY, relay_key.as_slice())?,
    })
}

/// Replaces a file that only its owner may read.
fn write_private(path: &Path, text: &str) -> Result<(), BootstrapError> {
    let failed = |source| BootstrapError::File { operation: "write", path: path.to_owned(), source };
    let fresh = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(failed)?;
    writeln!(file, "{text}").and_then(|()| std::fs::rename(&fresh, path)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use mesh_state::node::NodeRole;
    use mesh_state::store::MemoryStore;

    use super::*;

    async fn open(store: &MemoryStore, directory: &Path) -> Result<OpenedCluster, BootstrapError> {
        open_cluster(
            store,
            directory,
            WantedPool::default(),
            Timestamp::from_timestamp(1_800_000_000, 0).unwrap(),
        )
        .await
    }

    #[tokio::test]
    async fn the_first_manager_makes_the_cluster_and_finds_it_again() {
        let (store, directory) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let data = directory.path().join("control");
        let made = open(&store, &data).await.unwrap();
        let found = open(&store, &data).await.unwrap();
        assert_eq!(found.cluster, made.cluster, "the cluster found again");
        assert_eq!(found.authority.digest(), made.authority.digest());

        let tokens = join_tokens(&found.cluster, &found.sealer).unwrap();
        for (file, role) in
            [("join-token-worker", NodeRole::Worker), ("join-token-manager", NodeRole::Manager)]
        {
            let path = data.join(file);
            let token = std::fs::read_to_string(&path).unwrap();
            assert_eq!(tokens.role_of(&token), Some(role), "{file} holds {token}");
            let permissions = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(permissions, 0o600, "mode of {file}");
        }
        let relay_key = found.sealer.open(RELAY_KEY, &found.cluster.relay_key).unwrap();
        assert_eq!(relay_key.len(), RELAY_KEY_BYTES);
    }

    #[tokio::test]
    async fn another_manager_needs_the_key_file() {
        let store = MemoryStore::new();
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let made = open(&store, first.path()).await.unwrap();
        let refused = open(&store, second.path()).await.map(|_| ()).unwrap_err();
        assert!(
            refused.to_string().contains("copy the key file"),
            "the error doesn't say what to do: {refused}"
        );
        assert!(!second.path().join("key").exists(), "a key was made for a cluster that exists");

        std::fs::write(second.path().join("key"), [9; 32]).unwrap();
        let wrong = open(&store, second.path()).await.map(|_| ()).unwrap_err();
        assert!(matches!(wrong, BootstrapError::Seal(SealError::Open { .. })), "a wrong key: {wrong:?}");

        std::fs::copy(first.path().join("key"), second.path().join("key")).unwrap();
        assert_eq!(open(&store, second.path()).await.unwrap().cluster, made.cluster);
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_worth_another_attempt() {
        let (store, directory) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        store.set_reachable(false);
        let error = open(&store, directory.path()).await.map(|_| ()).unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        assert!(!directory.path().join("key").exists(), "a key was made before the store was asked");
    }
}
