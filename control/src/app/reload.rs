//! What a reload of the settings does beside them: certificates for etcd are read again.

use std::sync::Arc;

use mesh_runtime::error_chain;
use mesh_state::store::EtcdStore;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Connects to etcd with its files as they are then after each of `reloads`, until `stop`.
pub(super) async fn follow(
    etcd: Arc<EtcdStore>,
    mut reloads: watch::Receiver<u64>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            changed = reloads.changed() => if changed.is_err() {
                // No reload comes once signals are ignored, at the end of the process.
                stop.cancelled().await;
                return Ok(());
            },
            () = stop.cancelled() => return Ok(()),
        }
        match etcd.reconnect().await {
            Ok(()) => info!("the certificates for etcd were read again"),
            Err(error) => error!(
                error = error_chain(&error),
                "can't use the certificates for etcd: the connection of before stays"
            ),
        }
    }
}
