//! Starts the encryption of networks, if this node can do it.
//!
//! A node that can't goes on without: managers place no task with an encrypted network there, and
//! its programs drop packets of such networks.

use std::sync::Arc;

use mesh_runtime::{Components, error_chain};
use mesh_state::node::EncryptionEnd;
use tokio::sync::watch;

use crate::cli::Datapath;
use crate::config::{Config, mtu};
use crate::encryption;
use crate::view::NodeView;

/// Makes the device and the socket, and starts carrying packets of encrypted networks; returns
/// where other nodes find this one, `None` if the node can't encrypt. Blocks for an instant. The
/// device's end ends the agent: the next start makes it anew.
///
/// It does not wait for the kernel programs, as loading them takes seconds on a busy node: those of
/// an earlier agent know the device. While there are none, the host's stack drops what the device
/// receives, as its frames are addressed to another MAC.
pub(super) fn start(
    components: &Components,
    config: &Config,
    views: watch::Receiver<Arc<NodeView>>,
) -> Option<EncryptionEnd> {
    if config.datapath == Datapath::Userspace {
        return None;
    }
    let mtu = mtu::of_uplink(config.address);
    match encryption::open(&config.data_dir, config.address, config.wireguard_port, mtu) {
        Ok(opened) => {
            let (end, stop) = (opened.end(), components.stopping().clone());
            components.spawn("encryption", async move { Ok(opened.run(views, stop).await?) });
            Some(end)
        }
        Err(error) => {
            tracing::warn!(
                error = error_chain(&error),
                "this node takes no tasks on encrypted networks (--opt encrypted)"
            );
            None
        }
    }
}
