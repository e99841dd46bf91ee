//! Opens this manager's key file at the start: with autolock, only once an operator has given the
//! unlock key.

use std::path::Path;
use std::sync::Arc;

use mesh_runtime::supervisor;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::unlock_desk::{self, Taken};
use crate::own_node::OwnNode;
use crate::seal::key_file::{KEY_FILE, KeyFile};
use crate::seal::unlock_key::UnlockKey;

/// How a manager starts.
pub(super) enum Start {
    /// Its key file is open.
    Opened(Opening),
    /// It is locked, and is to leave its cluster.
    Leaves,
    /// The process stops.
    Stops,
}

/// How the key file was opened.
pub(super) struct Opening(Option<(UnlockKey, oneshot::Sender<()>)>);

impl Opening {
    /// The unlock key that opens the key file; `None` if that is in clear, or doesn't exist.
    pub(super) fn key(&self) -> Option<UnlockKey> {
        self.0.as_ref().map(|(key, _)| key.clone())
    }

    /// Answers the client that gave the unlock key: this manager serves.
    pub(super) fn serves(self) {
        if let Some((_, client)) = self.0
            && client.send(()).is_err()
        {
            info!("the client that unlocked this manager is gone");
        }
    }
}

/// Waits until the key file in `data_dir` can be opened, or this manager is to stop, or to leave if
/// it `may_leave`. Answers `socket` meanwhile.
pub(super) async fn opened(
    data_dir: &Path,
    socket: &UnixListener,
    may_leave: bool,
    stop: &CancellationToken,
) -> anyhow::Result<Start> {
    let (key_file, directory) = (data_dir.join(KEY_FILE), data_dir.to_owned());
    let read = tokio::task::spawn_blocking(move || {
        let node = OwnNode::load(&directory).map(|node| node.id());
        (KeyFile::read(&key_file), node)
    });
    let (file, node) = read.await?;
    let Some(KeyFile::Wrapped(wrapped)) = file? else { return Ok(Start::Opened(Opening(None))) };
    supervisor::tell_status("locked: waits for docker swarm unlock");
    warn!("this manager is locked: it waits for docker swarm unlock on its node");
    let node = node?.map(|id| id.to_string()).unwrap_or_default();
    let taken = unlock_desk::wait(socket, Arc::new(wrapped), node, may_leave);
    match stop.run_until_cancelled(taken).await {
        Some(Taken::Key { key, client }) => {
            info!("this manager is unlocked");
            supervisor::tell_status("unlocked");
            Ok(Start::Opened(Opening(Some((key, client)))))
        }
        Some(Taken::Leave) => Ok(Start::Leaves),
        None => Ok(Start::Stops),
    }
}
