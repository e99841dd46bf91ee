//! Containers of clients on the cluster's networks: each gets an address from a manager before the
//! engine hears of it.
//!
//! Invariants: an address is asked for before the container exists, and given back by
//! [`super::attachment_keeper`] alone, once no container has it. The network's bridge stays while a
//! container is on its way there.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_state::ids::AttachmentId;
use mesh_state::proto::AttachRequest;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::debug;

use super::attached_body::Place;
use super::error::ApiError;
use crate::control_link::attach::Attacher;
use crate::task::networks::keeper::{Hold, Networks};
use crate::view::NodeView;

/// How long a container waits until the data path and the name server of this node know it. Beyond
/// that it goes on, and is reached once they do.
const TABLE_DEADLINE: Duration = Duration::from_secs(5);

/// This node's containers that are no tasks, on networks of the cluster's.
pub struct Attachments {
    pub(super) attacher: Attacher,
    networks: Arc<Networks>,
    pub(super) views: watch::Receiver<Arc<NodeView>>,
    /// Attachments whose container the engine may not have yet.
    under_way: Mutex<BTreeSet<String>>,
    /// Told when one of them is under way no more.
    pub(super) settled: Notify,
}

/// A container that is about to be put on a network. The place is kept for it until this is
/// dropped; from then on, only by the container.
pub(super) struct Joining {
    pub(super) place: Place,
    _hold: Hold,
    _under_way: UnderWay,
}

/// An attachment that is under way, until it is dropped.
struct UnderWay {
    attachments: Arc<Attachments>,
    id: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.attachments.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.attachments.settled.notify_one();
    }
}

impl Attachments {
    /// Attachments that `attacher` asks for; `networks` makes the bridges.
    pub fn new(
        attacher: Attacher,
        networks: Arc<Networks>,
        views: watch::Receiver<Arc<NodeView>>,
    ) -> Arc<Self> {
        Arc::new(Self { attacher, networks, views, under_way: Mutex::default(), settled: Notify::new() })
    }

    /// The attachments that are under way.
    pub(super) fn under_way(&self) -> BTreeSet<String> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gets a container an address on the network that its client named, and makes the network's
    /// bridge. `asked` lacks the attachment's id and the network.
    ///
    /// # Errors
    /// No manager answers, or one refuses; the bridge can't be made.
    pub(super) async fn join(
        self: &Arc<Self>,
        named: &str,
        asked: AttachRequest,
    ) -> Result<Joining, ApiError> {
        let id = AttachmentId::random(&mut rand::rng()).to_string();
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        let under_way = UnderWay { attachments: Arc::clone(self), id: id.clone() };
        let asked = AttachRequest { attachment_id: id.clone(), network: named.to_owned(), ..asked };
        let given = self.attacher.attach(&asked).await;
        let network = given.map_err(|source| ApiError::Attach { network: named.to_owned(), source })?;
        if !asked.address.is_empty() && asked.address != network.address.to_string() {
            return Err(ApiError::OtherAddress { network: named.to_owned(), address: asked.address });
        }
        let hold = self.networks.hold(&network.id);
        let made = self.networks.ensure(&network).await;
        made.map_err(|source| ApiError::NoBridge { network: named.to_owned(), source })?;
        let mut views = self.views.clone();
        let known = views.wait_for(|view| view.members.contains_key(&id));
        if timeout(TABLE_DEADLINE, known).await.is_err() {
            debug!(network = network.name, "a container goes on before this node's table has it");
        }
        let place = Place { named: named.to_owned(), network };
        Ok(Joining { place, _hold: hold, _under_way: under_way })
    }
}
