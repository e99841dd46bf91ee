//! The node that this manager runs on: the agent on its machine announces it over the control
//! socket, which only root may open.
//!
//! Nothing else identifies the node. Any node may have any hostname, also this manager's name.
//!
//! Invariants: the id that was announced last counts; it is stored in `DATA/node`, so that a
//! manager whose agent is away still knows it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_state::ids::{ID_LENGTH, NodeId};
use thiserror::Error;
use tokio::sync::watch;

use mesh_runtime::private_file;

/// The file in the data directory.
const FILE: &str = "node";

/// Why the node's id can't be read or stored.
#[derive(Debug, Error)]
pub enum OwnNodeError {
    /// The file can't be read.
    #[error("read {}", path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: std::io::Error,
    },
    /// The file can't be written.
    #[error("write {}", path.display())]
    Write {
        /// The file's path.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: std::io::Error,
    },
    /// The announced text is no node id.
    #[error("{0:?} is no id of a node: it has 1 to {ID_LENGTH} letters and digits")]
    NoId(String),
}

/// The id of the node that this manager runs on. Clones share it.
#[derive(Debug, Clone)]
pub struct OwnNode {
    file: Arc<Path>,
    known: watch::Sender<Option<NodeId>>,
}

impl OwnNode {
    /// Loads the id from the data directory.
    ///
    /// # Errors
    /// The file exists and can't be read, or holds no id.
    pub fn load(data_dir: &Path) -> Result<Self, OwnNodeError> {
        let path = data_dir.join(FILE);
        let known = match std::fs::read_to_string(&path) {
            Ok(text) => Some(node_id(text.trim())?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(OwnNodeError::Read { path, source }),
        };
        Ok(Self { file: path.into(), known: watch::Sender::new(known) })
    }

    /// The id, once it was announced.
    pub fn id(&self) -> Option<NodeId> {
        self.known.borrow().clone()
    }

    /// A receiver of the id.
    pub fn follow(&self) -> watch::Receiver<Option<NodeId>> {
        self.known.subscribe()
    }

    /// Stores the id that the agent announces; `true` if it is new.
    ///
    /// # Errors
    /// It is no id, or can't be stored on disk; nothing changes then.
    pub fn learn(&self, told: &str) -> Result<bool, OwnNodeError> {
        let id = node_id(told)?;
        if self.known.borrow().as_ref() == Some(&id) {
            return Ok(false);
        }
        private_file::replace(&self.file, format!("{id}\n").as_bytes())
            .map_err(|source| OwnNodeError::Write { path: self.file.to_path_buf(), source })?;
        self.known.send_replace(Some(id));
        Ok(true)
    }
}

fn node_id(text: &str) -> Result<NodeId, OwnNodeError> {
    let length = (1..=ID_LENGTH).contains(&text.len());
    if length && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        Ok(text.into())
    } else {
        Err(OwnNodeError::NoId(text.chars().take(ID_LENGTH).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_announced_last_counts_and_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let own = OwnNode::load(directory.path()).unwrap();
        assert_eq!(own.id(), None, "no agent has announced an id");
        let followed = own.follow();
        assert!(own.learn("abc1").unwrap() && !own.learn("abc1").unwrap(), "the same id is news twice");
        assert!(own.learn("abc2").unwrap(), "the machine was set up again");
        assert_eq!((own.id(), followed.borrow().clone()), (Some("abc2".into()), Some("abc2".into())));
        let after_a_restart = OwnNode::load(directory.path()).unwrap();
        assert_eq!(after_a_restart.id(), Some("abc2".into()));
    }

    #[test]
    fn an_invalid_id_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let own = OwnNode::load(directory.path()).unwrap();
        own.learn("abc1").unwrap();
        for told in ["", "a/b", "a b", &"a".repeat(ID_LENGTH + 1), "\u{e9}"] {
            assert!(matches!(own.learn(told), Err(OwnNodeError::NoId(_))), "{told:?} was taken");
        }
        assert_eq!(own.id(), Some("abc1".into()));
    }
}
