//! The sockets of a manager.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use mesh_runtime::error_chain;
use mesh_runtime::unix_socket::Access;
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

use crate::config::Config;

/// The sockets, bound before the cluster is opened.
pub(super) struct Listeners {
    pub(super) nodes: TcpListener,
    pub(super) admin: TcpListener,
    pub(super) docker: UnixListener,
    /// Of the Docker API for clients on other machines, if that is on.
    pub(super) remote: Option<TcpListener>,
}

/// Only root may use the manager's socket; the node's agent runs as root.
pub(super) const OWNERS_ALONE: Access = Access { mode: 0o600, gid: None };

pub(super) async fn bind_tcp(config: &Config, docker: UnixListener) -> anyhow::Result<Listeners> {
    let tcp = async |flag: &str, address: SocketAddr| {
        TcpListener::bind(address).await.with_context(|| format!("listen on {address} ({flag})"))
    };
    Ok(Listeners {
        nodes: tcp("--node-listen", config.node_listen).await?,
        admin: tcp("--metrics-listen", config.metrics_listen).await?,
        docker,
        remote: match &config.remote_api {
            Some(api) => Some(tcp("--docker-listen", api.listen).await?),
            None => None,
        },
    })
}

pub(super) fn remove_socket(socket: &Path) {
    if let Err(error) = std::fs::remove_file(socket) {
        warn!(error = error_chain(&error), socket = %socket.display(), "can't remove the socket");
    }
}
