//! The last mesh table and relay keys on disk, so that an agent that starts while no manager
//! answers forwards as before.
//!
//! Invariants: the file is replaced as a whole; only this agent can read it, as it holds the relay
//! keys. An unreadable cache does not keep the agent from starting.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::relay_keys::RelayKeys;
use crate::view::NodeView;
use mesh_runtime::private_file;

const FILE: &str = "mesh-cache.json";
const FORMAT: u32 = 1;

/// The least and the most time between two writes. An agent that is killed starts with a table that
/// is older by at most this.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
const WRITE_INTERVAL_MAX: Duration = Duration::from_secs(2);

/// The pause after a write, as a multiple of the time that it took. It bounds the share of a CPU
/// that writes cost while a large table changes all the time, as the table is written whole.
const REST: u32 = 9;

/// The contents of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The last mesh table, and this node's subnet.
    pub view: NodeView,
    /// The keys of relayed connections.
    pub relay_keys: RelayKeys,
}

#[derive(Serialize, Deserialize)]
struct Envelope<View, Keys> {
    format: u32,
    view: View,
    relay_keys: Keys,
}

/// Why the cache could not be read or written.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The file can't be read or written.
    #[error("access {}", path.display())]
    File {
        /// The file of the cached table.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The file holds no valid cache.
    #[error("{} can't be read", path.display())]
    Damaged {
        /// The file of the cached table.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// Another version of mesh-agent wrote the file.
    #[error("{} has format {format}, this agent knows {FORMAT}", path.display())]
    Format {
        /// The file of the cached table.
        path: PathBuf,
        /// The file's format.
        format: u32,
    },
}

/// Loads the cache in `data_dir`, if there is one. Blocks.
///
/// # Errors
/// The file exists and can't be used.
pub fn load(data_dir: &Path) -> Result<Option<Cached>, CacheError> {
    #[derive(Deserialize)]
    struct Probe {
        format: u32,
    }
    let path = data_dir.join(FILE);
    let damaged = |source| CacheError::Damaged { path: path.clone(), source };
    let contents =
        private_file::read(&path).map_err(|source| CacheError::File { path: path.clone(), source })?;
    let Some(contents) = contents else { return Ok(None) };
    let Probe { format } = serde_json::from_slice(&contents).map_err(damaged)?;
    if format != FORMAT {
        return Err(CacheError::Format { path, format });
    }
    let envelope: Envelope<NodeView, RelayKeys> = serde_json::from_slice(&contents).map_err(damaged)?;
    Ok(Some(Cached { view: envelope.view, relay_keys: envelope.relay_keys }))
}

/// Replaces the cache in `data_dir`. Blocks.
///
/// # Errors
/// The file can't be written.
pub fn store(data_dir: &Path, view: &NodeView, relay_keys: &RelayKeys) -> Result<(), CacheError> {
    let path = data_dir.join(FILE);
    serde_json::to_vec(&Envelope { format: FORMAT, view, relay_keys })
        .map_err(io::Error::from)
        .and_then(|bytes| private_file::replace(&path, &bytes))
        .map_err(|source| CacheError::File { path, source })
}

/// Removes the cache from `data_dir`, if there is one. Blocks.
///
/// # Errors
/// The file can't be removed.
pub fn remove(data_dir: &Path) -> Result<(), CacheError> {
    let path = data_dir.join(FILE);
    private_file::remove(&path).map_err(|source| CacheError::File { path, source })
}

/// Stores each new table and key until `shutdown`; a failed write is logged and tried again with
/// the next change.
pub async fn keep(
    data_dir: PathBuf,
    mut view: watch::Receiver<Arc<NodeView>>,
    mut relay_keys: watch::Receiver<RelayKeys>,
    shutdown: CancellationToken,
) {
    let mut pause = WRITE_INTERVAL;
    loop {
        let changed = async {
            tokio::select! {
                result = view.changed() => result,
                result = relay_keys.changed() => result,
            }
        };
        let ended = tokio::select! {
            () = shutdown.cancelled() => true,
            result = changed => result.is_err(),
        };
        if view.borrow().generation > 0 {
            let (directory, table, keys) =
                (data_dir.clone(), view.borrow_and_update().clone(), relay_keys.borrow_and_update().clone());
            let began = Instant::now();
            match tokio::task::spawn_blocking(move || store(&directory, &table, &keys)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(error = %mesh_runtime::error_chain(&error), "can't store the mesh table on disk");
                }
                Err(error) => {
                    tracing::error!(
                        error = mesh_runtime::error_chain(&error),
                        "can't store the mesh table on disk"
                    );
                }
            }
            pause = pause_after(began.elapsed());
        }
        if ended {
            return;
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The pause after a write that took this long.
fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(REST).clamp(WRITE_INTERVAL, WRITE_INTERVAL_MAX)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_state::ids::NodeId;
    use mesh_state::proto;

    use super::super::relay_keys::RelayKey;
    use super::*;

    fn view() -> NodeView {
        let table = proto::MeshTable {
            generation: 7,
            backends: vec![proto::MeshBackend {
                id: 3,
                service_id: "s".into(),
                address: "10.128.0.2".into(),
                protocol: "tcp".into(),
                published: 80,
                target: 8080,
                state: proto::BackendState::Silent.into(),
                weight: 2,
                ..proto::MeshBackend::default()
            }],
            ..proto::MeshTable::default()
        };
        let mut view = NodeView::new(NodeId::from("n"), Ipv4Addr::LOCALHOST).apply(&table).expect("a view");
        view.subnet = "10.128.0.0/24".parse().ok();
        view
    }

    #[test]
    fn what_was_kept_comes_back() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(load(directory.path()).expect("no file is no error"), None);
        let keys = RelayKeys::default().rotated(RelayKey::from_bytes(&[7; 32]).expect("a key"));
        store(directory.path(), &view(), &keys).expect("it is stored");
        let cached = load(directory.path()).expect("it is read");
        assert_eq!(cached, Some(Cached { view: view(), relay_keys: keys }));
    }

    #[test]
    fn a_foreign_cache_is_named_not_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join(FILE), r#"{"format": 99}"#).expect("a newer file");
        assert!(matches!(load(directory.path()), Err(CacheError::Format { format: 99, .. })));
        std::fs::write(directory.path().join(FILE), "nonsense").expect("a damaged file");
        assert!(matches!(load(directory.path()), Err(CacheError::Damaged { .. })));
    }

    #[test]
    fn the_longer_a_write_takes_the_rarer_it_is() {
        let pause = |took: u64| pause_after(Duration::from_millis(took)).as_millis();
        assert_eq!([0, 10, 50, 1000].map(pause), [100, 100, 450, 2000]);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_reach_the_disk_by_the_time_of_shutdown() {
        let directory = tempfile::tempdir().expect("a directory");
        let (view_sender, view_receiver) = watch::channel(Arc::new(view()));
        let (_keys_sender, keys_receiver) = watch::channel(RelayKeys::default());
        let shutdown = CancellationToken::new();
        let keeper =
            tokio::spawn(keep(directory.path().to_owned(), view_receiver, keys_receiver, shutdown.clone()));
        view_sender.send_modify(|view| Arc::make_mut(view).generation = 8);
        shutdown.cancel();
        keeper.await.expect("the keeper ends");
        let generation = load(directory.path()).expect("it is read").map(|cached| cached.view.generation);
        assert_eq!(generation, Some(8));
    }
}
