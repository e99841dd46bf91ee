//! State that the components of a member share; each item has one writer.

use std::sync::Arc;

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
    pub(super) loads: Arc<Loads>,
}
