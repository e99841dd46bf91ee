//! Sends the node the addresses of the managers, so that it reaches them when its own one is lost,
//! and its role, so that it becomes a manager or ceases to be one.

use mesh_state::proto;
use mesh_state::proto::control_message::Body as Down;

use super::super::end::SessionEnd;
use super::Session;
use crate::feed::snapshot::ClusterSnapshot;

impl Session {
    /// Sends the living managers' addresses and the node's role if they changed. While no manager
    /// is known nothing is sent: the node goes on with those that it has.
    pub(super) async fn send_managers(&mut self, snapshot: &ClusterSnapshot) -> Result<(), SessionEnd> {
        let addresses = snapshot.manager_addresses();
        let role = snapshot.nodes.get(&self.node).map_or("", |node| node.spec.role.as_str()).to_owned();
        let managers = proto::Managers { addresses, role };
        if !self.takes_managers || managers.addresses.is_empty() || managers == self.told_managers {
            return Ok(());
        }
        self.told_managers.clone_from(&managers);
        self.send(Down::Managers(managers)).await
    }
}
