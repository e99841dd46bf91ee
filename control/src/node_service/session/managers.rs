//! Sends the node the addresses of the managers, so that it reaches them when its own one is lost.

use mesh_state::proto;
use mesh_state::proto::control_message::Body as Down;

use super::super::end::SessionEnd;
use super::Session;
use crate::feed::snapshot::ClusterSnapshot;

impl Session {
    /// Sends the living managers' addresses if they changed. While none is known nothing is sent:
    /// the node goes on with those that it has.
    pub(super) async fn send_managers(&mut self, snapshot: &ClusterSnapshot) -> Result<(), SessionEnd> {
        let addresses = snapshot.manager_addresses();
        if !self.takes_managers || addresses.is_empty() || addresses == self.told_managers {
            return Ok(());
        }
        self.told_managers.clone_from(&addresses);
        self.send(Down::Managers(proto::Managers { addresses })).await
    }
}
