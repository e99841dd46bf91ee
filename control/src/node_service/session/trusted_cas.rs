//! Sends the node the CAs that it is to trust, and tells it to renew its certificate when its turn
//! has come in a rotation of the CA.

use std::time::Duration;

use mesh_state::ids::NodeId;
use mesh_state::node::NodeState;
use mesh_state::proto::TrustedCas;
use mesh_state::proto::control_message::Body as Down;

use tokio::time::Instant;

use super::super::end::SessionEnd;
use super::Session;
use crate::feed::snapshot::ClusterSnapshot;

/// How many nodes renew at a time in a rotation, as in Swarm.
const BATCH: usize = 30;
/// How long after a node was told to renew it is told again.
const RENEW_AGAIN: Duration = Duration::from_secs(5);

impl Session {
    /// Sends the trusted CAs if they changed, or if the node is to renew.
    pub(super) async fn send_trusted_cas(&mut self, snapshot: &ClusterSnapshot) -> Result<(), SessionEnd> {
        let Some(cluster) = snapshot.cluster.as_ref().filter(|_| self.takes_cas) else { return Ok(()) };
        let rotation = cluster.ca_rotation.as_ref();
        let renew = rotation.is_some_and(|rotation| rotation.is_to_renew(&self.issuer))
            && is_in_turn(snapshot, &self.node);
        let wanted = TrustedCas { ca_pem: cluster.trusted_pems().concat(), renew };
        // A node that asked a manager a step behind got a certificate of the former CA.
        let again = renew && self.told_cas_at.elapsed() > RENEW_AGAIN;
        if self.told_cas.as_ref() == Some(&wanted) && !again {
            return Ok(());
        }
        self.told_cas = Some(wanted.clone());
        self.told_cas_at = Instant::now();
        self.send(Down::TrustedCas(wanted)).await
    }
}

/// Whether a node is among the first that are heard and still have to renew.
fn is_in_turn(snapshot: &ClusterSnapshot, node: &NodeId) -> bool {
    let Some(rotation) = snapshot.cluster.as_ref().and_then(|cluster| cluster.ca_rotation.as_ref()) else {
        return false;
    };
    let is_due = |id: &NodeId, issuer: &str| {
        rotation.is_to_renew(issuer) && snapshot.node_state(id) == NodeState::Ready
    };
    let nodes = snapshot.nodes.iter();
    let mut due = nodes.filter(|(id, node)| is_due(id, &node.description.certificate_issuer)).take(BATCH);
    due.any(|(id, _)| id == node)
}

#[cfg(test)]
mod tests {
    use mesh_state::ca::{CaStage, RootCa, begin};
    use mesh_state::cluster::Sealed;

    use super::*;
    use crate::fixtures::World;

    #[test]
    fn nodes_renew_in_batches_and_those_that_are_away_take_no_place() {
        let ids: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
        let mut world = World::with_nodes(ids.iter().map(String::as_str));
        let before = world.snapshot.cluster.as_ref().unwrap().value.clone();
        let wanted = RootCa { certificate_pem: "b".to_owned(), digest: "b".to_owned() };
        let mut cluster = begin(&before, "a", wanted, Sealed(String::new()), world.now).unwrap();
        for id in &ids {
            world.set_liveness(&id.as_str().into(), NodeState::Ready);
        }
        world.put_cluster(&cluster);
        let in_turn = |world: &World| -> Vec<String> {
            ids.iter().filter(|id| is_in_turn(&world.snapshot, &id.as_str().into())).cloned().collect()
        };
        assert!(in_turn(&world).is_empty(), "managers don't trust the new CA yet");
        cluster.ca_rotation.as_mut().unwrap().stage = CaStage::Issue;
        world.put_cluster(&cluster);
        assert_eq!(in_turn(&world), ids[..BATCH]);
        world.set_liveness(&"n00".into(), NodeState::Down);
        world.update_node("n01", |node| node.description.certificate_issuer = "b".to_owned());
        assert_eq!(in_turn(&world), ids[2..BATCH + 2]);
    }
}
