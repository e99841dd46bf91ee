//! State that the components of a member share; each item has one writer.

use std::sync::Arc;

use mesh_state::node::EncryptionEnd;
use tokio::sync::watch;

use crate::control_link::relay_keys::RelayKeys;
use crate::lb::loads::Loads;
use crate::view::NodeView;

/// The channels of what is shared.
pub(super) struct State {
    pub(super) view: watch::Sender<Arc<NodeView>>,
    pub(super) relay_keys: watch::Sender<RelayKeys>,
    pub(super) connected: watch::Sender<bool>,
    pub(super) expelled: watch::Sender<bool>,
    pub(super) applied: watch::Receiver<u64>,
    /// The node's end of encrypted tunnels, if it has one.
    pub(super) encryption: Option<EncryptionEnd>,
    pub(super) loads: Arc<Loads>,
}
