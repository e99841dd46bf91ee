//! What `docker swarm init` decided for this manager: where it is reached, and what a new cluster
//! begins with. It is kept in `DATA/manager.json`; while there is none, a manager with an etcd of
//! its own waits.
//!
//! Invariant: the file is replaced as a whole, or removed.

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
/// The files of a cluster that was not founded after all, beside the directory of etcd.
const UNFOUNDED: [&str; 6] =
    [FILE, "key.new", "key", "cluster-id", "join-token-worker", "join-token-manager"];

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

/// Removes what a cluster that could not be founded left in `data_dir`, the etcd in `etcd`
/// included. Blocks.
///
/// # Errors
/// Something can't be removed.
pub fn clear(data_dir: &Path, etcd: &Path) -> Result<(), FoundingError> {
    match fs::remove_dir_all(etcd) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(FoundingError::File { path: etcd.to_owned(), source });
        }
        _ => {}
    }
    for file in UNFOUNDED {
        let path = data_dir.join(file);
        private_file::remove(&path).map_err(|source| FoundingError::File { path, source })?;
    }
    Ok(())
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
        };
        founding.store(&data).unwrap();
        assert_eq!(Founding::load(&data).unwrap(), Some(founding));
        fs::create_dir_all(data.join("etcd/data")).unwrap();
        fs::write(data.join("node"), "n1").unwrap();
        clear(&data, &data.join("etcd")).unwrap();
        assert_eq!(Founding::load(&data).unwrap(), None);
        assert!(!data.join("etcd").exists() && data.join("node").exists());
        fs::write(data.join(FILE), "nonsense").unwrap();
        assert!(matches!(Founding::load(&data), Err(FoundingError::Damaged { .. })));
    }
}
