//! How this node was put into its cluster by `docker swarm join`: the managers, and its own
//! address. It is kept in the data directory beside the identity; flags of the agent come on top.
//!
//! Invariant: the file is replaced as a whole, or removed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use mesh_runtime::private_file;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const FILE: &str = "place.json";

/// Where this node's cluster is, and by which address the node takes part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// The managers, those first that were told last.
    pub managers: Vec<SocketAddr>,
    /// The address at which other nodes reach this one; `None`: that of connections to managers.
    pub address: Option<Ipv4Addr>,
    /// Where a manager on this node is reached, if it was said; `None`: at the node's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Where a manager on this node listens, if it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Whether the node left its cluster by `docker swarm leave`: it then joins by no flags.
    pub left: bool,
}

/// Why the file can't be used.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The file can't be read or written.
    #[error("access {}", path.display())]
    File {
        /// The file's path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The file's content is invalid.
    #[error("{} is damaged: remove it, and name the managers with --manager", path.display())]
    Damaged {
        /// The file's path.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

impl Place {
    /// Loads the file in `data_dir`, if there is one. Blocks.
    ///
    /// # Errors
    /// The file exists and can't be used.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, PlaceError> {
        let path = data_dir.join(FILE);
        let contents =
            private_file::read(&path).map_err(|source| PlaceError::File { path: path.clone(), source })?;
        contents
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(|source| PlaceError::Damaged { path, source })
    }

    /// Replaces the file in `data_dir`. Blocks.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn store(&self, data_dir: &Path) -> Result<(), PlaceError> {
        let path = data_dir.join(FILE);
        serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|bytes| private_file::replace(&path, &bytes))
            .map_err(|source| PlaceError::File { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_loaded_and_what_is_damaged_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(Place::load(directory.path()).expect("no file is no error"), None);
        let place = Place {
            managers: vec![([10, 0, 0, 1], 2377).into()],
            address: Some(Ipv4Addr::new(10, 0, 0, 9)),
            left: false,
            ..Place::default()
        };
        place.store(directory.path()).expect("it is stored");
        assert_eq!(Place::load(directory.path()).expect("it is read"), Some(place));
        std::fs::write(directory.path().join(FILE), "nonsense").expect("a damaged file");
        let error = Place::load(directory.path()).expect_err("damaged").to_string();
        assert!(error.contains("--manager"), "no next step in: {error}");
    }
}
