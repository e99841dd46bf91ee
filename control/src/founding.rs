//! What `docker swarm init` decided for this manager: where it is reached, and what a new cluster
//! begins with. It is kept in `DATA/manager.json`; while there is none, a manager with an etcd of
//! its own waits.
//!
//! Invariant: the file is replaced as a whole, or removed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use mesh_runtime::private_file;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The file in the data directory.
const FILE: &str = "manager.json";
/// What belongs to a cluster, beside the directory of etcd; the record that there is one first.
const OF_A_CLUSTER: [&str; 7] =
    [FILE, "key.new.part", "key.new", "key", "cluster-id", "join-token-worker", "join-token-manager"];

/// The beginning of a manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founding {
    /// Where nodes and other managers reach it.
    pub advertise: SocketAddr,
    /// Where it listens for nodes.
    pub listen: SocketAddr,
    /// The pool of networks' subnets; `None`: the usual one.
    #[serde(default)]
    pub network_pool: Option<Ipv4Net>,
    /// The prefix length of such a subnet.
    #[serde(default)]
    pub network_prefix: Option<u8>,
    /// The members of the etcd that it is about to join, itself included: peer URLs by name. `None`
    /// once it has joined, and for the first manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins: Option<BTreeMap<String, String>>,
    /// Whether a backup is being restored into its new etcd: `false` once all of it is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restores: bool,
}

/// Why the file can't be used.
#[derive(Debug, Error)]
pub enum FoundingError {
    /// A file can't be read, written or removed.
    #[error("access {}", path.display())]
    File {
        /// The file's path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The content is invalid.
    #[error("{} is damaged: restore it from a backup, or name this cluster's etcd with --etcd", path.display())]
    Damaged {
        /// The file's path.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

impl Founding {
    /// Loads the file in `data_dir`, if there is one. Blocks.
    ///
    /// # Errors
    /// The file exists and can't be used.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, FoundingError> {
        let path = data_dir.join(FILE);
        let read = private_file::read(&path);
        let contents = read.map_err(|source| FoundingError::File { path: path.clone(), source })?;
        contents
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(|source| FoundingError::Damaged { path, source })
    }

    /// Writes the file to `data_dir`. Blocks.
    ///
    /// # Errors
    /// It can't be written.
    pub fn store(&self, data_dir: &Path) -> Result<(), FoundingError> {
        let path = data_dir.join(FILE);
        private_file::create_private_dir(data_dir)
            .and_then(|()| serde_json::to_vec_pretty(self).map_err(io::Error::from))
            .and_then(|bytes| private_file::replace(&path, &bytes))
            .map_err(|source| FoundingError::File { path, source })
    }
}

/// Removes what belongs to a cluster from `data_dir`, and the etcd in `etcd` last: as long as that
/// is there, the next start goes on with the removal. Blocks.
///
/// # Errors
/// Something can't be removed.
pub fn clear(data_dir: &Path, etcd: &Path) -> Result<(), FoundingError> {
    for file in OF_A_CLUSTER {
        let path = data_dir.join(file);
        private_file::remove(&path).map_err(|source| FoundingError::File { path, source })?;
    }
    match fs::remove_dir_all(etcd) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FoundingError::File { path: etcd.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The founding in `data_dir`, after what an interrupted join or removal left was removed. `None`
/// if this manager is in no cluster. Blocks.
///
/// # Errors
/// A file can't be used or removed.
pub fn settle(data_dir: &Path, etcd: &Path) -> Result<Option<Founding>, FoundingError> {
    match Founding::load(data_dir)? {
        // What is in etcd is no whole cluster yet.
        Some(founding) if founding.restores => clear(data_dir, etcd).map(|()| None),
        // The key is written last.
        Some(founding) if founding.joins.is_none() || data_dir.join("key").exists() => Ok(Some(founding)),
        None if !etcd.exists() => Ok(None),
        _ => clear(data_dir, etcd).map(|()| None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_founding_is_kept_until_it_is_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("control");
        assert_eq!(Founding::load(&data).unwrap(), None, "nothing was founded");
        let founding = Founding {
            advertise: ([10, 0, 0, 1], 2377).into(),
            listen: ([0, 0, 0, 0], 2377).into(),
            network_pool: "10.20.0.0/16".parse().ok(),
            network_prefix: Some(26),
            joins: None,
            restores: false,
        };
        founding.store(&data).unwrap();
        assert_eq!(Founding::load(&data).unwrap(), Some(founding.clone()));
        fs::create_dir_all(data.join("etcd/data")).unwrap();
        fs::write(data.join("node"), "n1").unwrap();
        clear(&data, &data.join("etcd")).unwrap();
        assert_eq!(Founding::load(&data).unwrap(), None);
        assert!(!data.join("etcd").exists() && data.join("node").exists());
        let joins = Founding { joins: Some(BTreeMap::new()), ..founding.clone() };
        joins.store(&data).unwrap();
        assert_eq!(settle(&data, &data.join("etcd")).unwrap(), None, "a join without its key is undone");
        joins.store(&data).unwrap();
        fs::write(data.join("key"), "k").unwrap();
        assert_eq!(settle(&data, &data.join("etcd")).unwrap(), Some(joins), "a join with its key goes on");
        fs::remove_file(data.join(FILE)).unwrap();
        fs::create_dir_all(data.join("etcd/data")).unwrap();
        assert_eq!(settle(&data, &data.join("etcd")).unwrap(), None);
        assert!(!data.join("key").exists() && !data.join("etcd").exists(), "a removal is completed");
        Founding { restores: true, ..founding }.store(&data).unwrap();
        fs::write(data.join("key"), "k").unwrap();
        assert_eq!(settle(&data, &data.join("etcd")).unwrap(), None, "half of a backup is no cluster");
        fs::write(data.join(FILE), "nonsense").unwrap();
        assert!(matches!(Founding::load(&data), Err(FoundingError::Damaged { .. })));
    }
}
