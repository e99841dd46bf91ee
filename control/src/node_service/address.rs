//! Checks the address that a node claims.

use std::net::{IpAddr, Ipv4Addr};

use mesh_state::ids::NodeId;
use mesh_state::node::{NodeState, is_member_address};
use thiserror::Error;

use crate::feed::snapshot::ClusterSnapshot;

/// Why a node's address is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum AddressError {
    /// Not the address of a machine, or valid on that machine only.
    #[error("{0} is no address that other nodes can reach: give the agent another with --address")]
    Unusable(Ipv4Addr),
    /// Another member that is heard has it.
    #[error("{address} is node {other}'s: give the agent its own with --address, or remove that node")]
    Taken {
        /// The address that both nodes claim.
        address: Ipv4Addr,
        /// The other member.
        other: NodeId,
    },
}

/// Checks that `node` may have `address`. It may take over the address of a node that is down: its
/// machine may have been set up again.
pub(super) fn check(
    snapshot: &ClusterSnapshot,
    node: &NodeId,
    address: Ipv4Addr,
) -> Result<(), AddressError> {
    if !is_member_address(address) {
        return Err(AddressError::Unusable(address));
    }
    let has_it = |id: &NodeId| snapshot.nodes[id].address == Some(IpAddr::V4(address));
    let lives = |id: &NodeId| snapshot.node_state(id) != NodeState::Down;
    match snapshot.nodes.keys().find(|id| *id != node && has_it(id) && lives(id)) {
        Some(other) => Err(AddressError::Taken { address, other: other.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::World;

    #[test]
    fn a_node_has_an_address_of_its_own() {
        let mut world = World::with_nodes(["a", "b"]);
        let address = Ipv4Addr::new(10, 77, 0, 11);
        world.update_node("a", |node| node.address = Some(IpAddr::V4(address)));
        let of = |world: &World, node: &str, address| check(&world.snapshot, &node.into(), address);
        assert_eq!(of(&world, "a", address), Ok(()), "its own");
        assert_eq!(of(&world, "b", address), Err(AddressError::Taken { address, other: "a".into() }));
        assert_eq!(of(&world, "b", Ipv4Addr::new(10, 77, 0, 12)), Ok(()));
        assert_eq!(of(&world, "b", Ipv4Addr::LOCALHOST), Err(AddressError::Unusable(Ipv4Addr::LOCALHOST)));
        world.set_liveness(&"a".into(), NodeState::Down);
        assert_eq!(of(&world, "b", address), Ok(()), "the address of a node that is down");
    }
}
