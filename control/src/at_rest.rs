//! The files of a manager that hold the cluster's secrets: its key file, and the join tokens.
//!
//! Purpose: with autolock, the key file is wrapped with the cluster's unlock key, and tokens are in
//! no file, so that a disk that is stolen or discarded opens nothing. The record in etcd says
//! whether, and with which key; every running manager follows it.
//!
//! Invariants: each file is replaced as a whole, so a manager that is killed meanwhile has its key
//! in one form or the other; a file that can't be written is tried again.
//!
//! Left to others: the private keys of etcd, which are sealed with the cluster's key
//! ([`crate::managed_etcd`]), and waiting for the unlock key at the start ([`crate::app`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::{error_chain, private_file};
use mesh_state::cluster::Cluster;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::ca::token::JoinTokens;
use crate::context::{TokenError, join_tokens, unlock_key};
use crate::feed::snapshot::ClusterSnapshot;
use crate::feed::watch::Feed;
pub use crate::seal::key_file::{FRESH_KEY_FILE, KEY_FILE};
use crate::seal::unlock_key::UnlockKey;
use crate::seal::{SealError, Sealer};

/// What a manager that was killed while it made a key left beside its file.
const FRESH_KEY_PART: &str = "key.new.part";
const WORKER_TOKEN_FILE: &str = "join-token-worker";
const MANAGER_TOKEN_FILE: &str = "join-token-manager";
/// The pause after a failed write.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Why a file could not be written.
#[derive(Debug, Error)]
pub enum AtRestError {
    /// The kernel refused.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation that failed: write or remove.
        operation: &'static str,
        /// The key file, or the file of a token.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: std::io::Error,
    },
    /// The key file can't be replaced, or the unlock key can't be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// This manager has a cluster's etcd, and not its key.
    #[error("{} does not exist: restore it from a backup, or give this manager up with an empty data directory", path.display())]
    NoKey {
        /// The key file.
        path: PathBuf,
    },
    /// The tokens can't be made.
    #[error("read the join tokens")]
    Tokens(#[from] TokenError),
    /// The write panicked.
    #[error("write the key file")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Keeps the files as the cluster's record wants them.
pub struct FileKeeper {
    /// The directory of the files.
    pub data_dir: PathBuf,
    /// The cluster's snapshots.
    pub snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
    /// Has the cluster's key.
    pub sealer: Arc<Sealer>,
    /// The unlock key that the key file is wrapped with now.
    pub lock: Option<UnlockKey>,
    /// Publishes the revision of the record that the files follow.
    pub follows: watch::Sender<i64>,
}

impl FileKeeper {
    /// A keeper of the files in `data_dir`, whose key file is wrapped with `lock` now.
    pub fn new(data_dir: &Path, feed: &Feed, sealer: Arc<Sealer>, lock: Option<UnlockKey>) -> Self {
        let (data_dir, snapshots) = (data_dir.to_owned(), feed.snapshots.clone());
        Self { data_dir, snapshots, sealer, lock, follows: watch::Sender::new(0) }
    }

    /// Rewrites the files whenever the record changes, until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let cluster = self.snapshots.borrow_and_update().cluster.clone();
            let is_new = |revision: i64| revision != *self.follows.borrow();
            let mut failed = false;
            if let Some(cluster) = cluster.filter(|cluster| is_new(cluster.mod_revision)) {
                match self.follow(&cluster.value).await {
                    Ok(()) => {
                        self.follows.send_replace(cluster.mod_revision);
                    }
                    Err(error) => {
                        warn!(error = error_chain(&error), "can't rewrite this manager's secret files");
                        failed = true;
                    }
                }
            }
            tokio::select! {
                changed = self.snapshots.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY_PAUSE), if failed => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Gives the files the form that the record wants.
    async fn follow(&mut self, cluster: &Cluster) -> Result<(), AtRestError> {
        let wanted = unlock_key(cluster, &self.sealer)?;
        let tokens = join_tokens(cluster, &self.sealer)?;
        let (data_dir, sealer, is_locked) =
            (self.data_dir.clone(), Arc::clone(&self.sealer), wanted.is_some());
        let rewrap = (wanted != self.lock).then(|| wanted.clone());
        let writing = tokio::task::spawn_blocking(move || {
            if let Some(lock) = rewrap {
                sealer.store(&data_dir.join(KEY_FILE), lock.as_ref())?;
            }
            // A manager that was killed while it wrote may have left the key there in clear.
            remove(&data_dir.join(FRESH_KEY_FILE))?;
            remove(&data_dir.join(FRESH_KEY_PART))?;
            keep_tokens(&data_dir, (!is_locked).then_some(&tokens))
        });
        writing.await??;
        if wanted != self.lock {
            let form = if is_locked { "wrapped with the cluster's unlock key" } else { "in clear" };
            info!(form, "the key file was rewritten");
            self.lock = wanted;
        }
        Ok(())
    }
}

/// The sealer with this manager's key in `data_dir`, which `lock` opens if it is wrapped. With
/// `founds` it makes a key if there is none: that of a cluster which is about to be created.
/// Blocks.
///
/// # Errors
/// The key file can't be read or made, or is missing.
pub fn own_sealer(data_dir: &Path, lock: Option<&UnlockKey>, founds: bool) -> Result<Sealer, AtRestError> {
    let (key, fresh) = (data_dir.join(KEY_FILE), data_dir.join(FRESH_KEY_FILE));
    if let Some(sealer) = Sealer::load(&key, lock)? {
        return Ok(sealer);
    }
    match Sealer::load(&fresh, None)? {
        Some(sealer) => Ok(sealer),
        None if founds => Ok(Sealer::create(&fresh)?),
        None => Err(AtRestError::NoKey { path: key }),
    }
}

/// Writes the join tokens to `data_dir`, or removes their files. Blocks.
///
/// # Errors
/// A file can't be written or removed.
pub fn keep_tokens(data_dir: &Path, tokens: Option<&JoinTokens>) -> Result<(), AtRestError> {
    let (worker, manager) = (data_dir.join(WORKER_TOKEN_FILE), data_dir.join(MANAGER_TOKEN_FILE));
    if let Some(tokens) = tokens {
        write_private(&worker, &tokens.worker)?;
        return write_private(&manager, &tokens.manager);
    }
    remove(&worker)?;
    remove(&manager)
}

fn remove(path: &Path) -> Result<(), AtRestError> {
    let failed = |source| AtRestError::File { operation: "remove", path: path.to_owned(), source };
    private_file::remove(path).map_err(failed)
}

/// Replaces a file that only its owner may read. Blocks.
///
/// # Errors
/// [`AtRestError::File`]
pub fn write_private(path: &Path, text: &str) -> Result<(), AtRestError> {
    let failed = |source| AtRestError::File { operation: "write", path: path.to_owned(), source };
    private_file::replace(path, format!("{text}\n").as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::create_authority;
    use crate::context::{MANAGER_TOKEN, UNLOCK_KEY, WORKER_TOKEN};
    use crate::fixtures::World;

    /// A keeper of files that are in clear, for the cluster of the world.
    fn keeper(directory: &Path, world: &World) -> (FileKeeper, watch::Sender<Arc<ClusterSnapshot>>) {
        let sealer = Sealer::create(&directory.join(KEY_FILE)).unwrap();
        let (snapshots, seen) = watch::channel(Arc::new(world.snapshot.clone()));
        let keeper = FileKeeper {
            data_dir: directory.to_owned(),
            snapshots: seen,
            sealer: Arc::new(sealer),
            lock: None,
            follows: watch::Sender::new(0),
        };
        (keeper, snapshots)
    }

    #[tokio::test]
    async fn the_files_follow_autolock_on_rotated_and_off() {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::with_nodes([]);
        let left = [FRESH_KEY_FILE, FRESH_KEY_PART, "join-token-manager.new", "join-token-worker.new"];
        for file in left {
            std::fs::write(directory.path().join(file), "left by a manager that was killed").unwrap();
        }
        let ca = create_authority(&"c".into(), world.now).unwrap().certificate_pem;
        let (keeper, snapshots) = keeper(directory.path(), &world);
        let (sealer, stop) = (Arc::clone(&keeper.sealer), CancellationToken::new());
        let mut follows = keeper.follows.subscribe();
        let running = tokio::spawn(keeper.run(stop.clone()));
        let (key, token) = (directory.path().join(KEY_FILE), directory.path().join(MANAGER_TOKEN_FILE));
        let (first, second) = (UnlockKey::random(), UnlockKey::random());
        for lock in [None, Some(&first), Some(&second), None] {
            let mut cluster = world.snapshot.cluster.as_ref().unwrap().value.clone();
            let seal = |purpose, bytes: &[u8]| sealer.seal(purpose, bytes).unwrap();
            cluster.unlock_key = lock.map(|lock| seal(UNLOCK_KEY, lock.bytes().as_slice()));
            cluster.worker_token = seal(WORKER_TOKEN, b"w");
            cluster.manager_token = seal(MANAGER_TOKEN, b"m");
            cluster.ca_certificate_pem.clone_from(&ca);
            world.put_cluster(&cluster);
            let revision = world.snapshot.cluster.as_ref().unwrap().mod_revision;
            snapshots.send_replace(Arc::new(world.snapshot.clone()));
            follows.wait_for(|follows| *follows == revision).await.unwrap();
            assert!(Sealer::load(&key, lock).unwrap().is_some(), "the form of {lock:?}");
            let opens_in_clear = Sealer::load(&key, None).is_ok();
            assert_eq!((opens_in_clear, token.exists()), (lock.is_none(), lock.is_none()), "{lock:?}");
            let copies: Vec<_> = left.iter().filter(|file| directory.path().join(file).exists()).collect();
            assert!(copies.is_empty(), "{copies:?} were left with {lock:?}");
        }
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn a_key_is_made_for_a_new_cluster_only_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let open = |lock: Option<&UnlockKey>, founds| {
            own_sealer(directory.path(), lock, founds).map(|sealer| sealer.key().to_vec())
        };
        assert!(matches!(open(None, false), Err(AtRestError::NoKey { .. })), "a lost key is replaced");
        let made = open(None, true).unwrap();
        assert_eq!(open(None, false).unwrap(), made, "the cluster is not in etcd yet");
        let lock = UnlockKey::random();
        let sealer = own_sealer(directory.path(), None, true).unwrap();
        sealer.store(&directory.path().join(KEY_FILE), Some(&lock)).unwrap();
        assert_eq!(open(Some(&lock), true).unwrap(), made);
        assert!(matches!(open(None, true), Err(AtRestError::Seal(SealError::Locked { .. }))));
    }
}
