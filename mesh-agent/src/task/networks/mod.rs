//! The Docker networks behind the cluster's networks: on each node with a task on a network, a
//! bridge network of the same name, with the cluster's subnet and this node's own address as its
//! gateway.
//!
//! Purpose: a task has an interface on each of its networks, and the engine's own commands
//! (`docker inspect`, `docker network inspect`) show it. [`decide`] chooses the next step for one
//! network (pure), [`keeper`] carries it out.
//!
//! Invariants: a network that containers use is never removed, and a network that a user made on
//! this node's engine is never changed.
//!
//! Left to others: giving addresses (mesh-control), carrying packets between nodes
//! ([`crate::datapath`]), the network `mesh` ([`super::bridge`]).

pub mod keeper;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_state::network::{AssignedNetwork, ENCRYPTED};

use crate::encryption::overlay_mtu;

/// The label of every Docker network that the agent made. Its value is the network's id, or empty
/// for `mesh`.
pub const NETWORK_LABEL: &str = "mesh.network";

/// How the names of bridge devices of networks begin.
pub const DEVICE_PREFIX: &str = "meshn";

/// The desired state of a Docker bridge network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The network's name.
    pub name: String,
    /// The value of its label [`NETWORK_LABEL`].
    pub label: String,
    /// The name of the bridge device.
    pub device: String,
    /// The network's subnet.
    pub subnet: Ipv4Net,
    /// The bridge's own address; if absent, the engine chooses the first of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// The network's IPv6 subnet, if it has one.
    pub subnet6: Option<Ipv6Net>,
    /// The bridge's own IPv6 address; if absent, the engine chooses one.
    pub gateway6: Option<Ipv6Addr>,
    /// The network's MTU in bytes.
    pub mtu: u32,
    /// Whether the network is internal, without a default route.
    pub internal: bool,
}

/// The state of a Docker network in the engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkFacts {
    /// The id of the network in the engine.
    pub id: String,
    /// The network's name.
    pub name: String,
    /// The value of its label [`NETWORK_LABEL`]; absent if the agent didn't make it.
    pub label: Option<String>,
    /// The name of the bridge device.
    pub device: Option<String>,
    /// The network's subnet.
    pub subnet: Option<Ipv4Net>,
    /// The bridge's own address, if it was set when the network was made.
    pub gateway: Option<Ipv4Addr>,
    /// The network's MTU in bytes.
    pub mtu: Option<u32>,
    /// Whether the network is internal, without a default route.
    pub internal: bool,
    /// Whether the network has IPv6 addresses too.
    pub has_ipv6: bool,
}

/// The containers on a Docker network, running or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkUsers {
    /// Their number, without those of tasks that have ended: another container may be started
    /// again, and has its address until it is removed.
    pub containers: usize,
    /// The number of those that are of tasks and were never started; they are connected to the
    /// network again before their start.
    pub unstarted_tasks: usize,
}

impl NetworkUsers {
    /// The number of containers that the removal of the network would disconnect.
    pub fn holders(self) -> usize {
        self.containers.saturating_sub(self.unstarted_tasks)
    }
}

/// A Docker network that an agent made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnNetwork {
    /// The id of the network in the engine.
    pub id: String,
    /// The network's name.
    pub name: String,
    /// The value of its label [`NETWORK_LABEL`].
    pub label: String,
}

/// The next step for a Docker network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkStep {
    /// Nothing to do: the network is as planned.
    Keep,
    /// Create the network.
    Create,
    /// Remove the network and create it anew; no container uses it.
    Recreate,
    /// Wait, for this reason, as nothing can be done now.
    Wait(String),
}

/// The plan of a network's Docker network. `default_mtu`, that of networks that aren't encrypted,
/// applies if its user set none.
pub fn plan(network: &AssignedNetwork, default_mtu: u32) -> NetworkPlan {
    let is_encrypted = network.number & ENCRYPTED != 0;
    let default_mtu = if is_encrypted { overlay_mtu(default_mtu) } else { default_mtu };
    NetworkPlan {
        name: network.name.clone(),
        label: network.id.to_string(),
        device: device(network.number),
        subnet: network.subnet,
        gateway: Some(network.node_address),
        subnet6: network.subnet6,
        gateway6: network.node_address6(),
        mtu: network.mtu.unwrap_or(default_mtu),
        // The default route is on `mesh`, so this network must not add one.
        internal: true,
    }
}

/// The name of the bridge device of the network with this number.
pub fn device(number: u32) -> String {
    format!("{DEVICE_PREFIX}{number}")
}

/// Whether a Docker network is exactly as planned: whoever uses it, there is nothing to do.
pub fn is_as_planned(plan: &NetworkPlan, found: &NetworkFacts) -> bool {
    is_right(plan, found) && found.mtu == Some(plan.mtu)
}

/// Whether a Docker network is as planned, except for its MTU.
fn is_right(plan: &NetworkPlan, found: &NetworkFacts) -> bool {
    found.label.as_ref() == Some(&plan.label)
        && found.subnet == Some(plan.subnet)
        && found.gateway == plan.gateway
        && found.device.as_ref() == Some(&plan.device)
        && found.internal == plan.internal
        && found.has_ipv6 == plan.subnet6.is_some()
}

/// Chooses the next step for a network's Docker network.
pub fn decide(plan: &NetworkPlan, found: Option<&(NetworkFacts, NetworkUsers)>) -> NetworkStep {
    let Some((found, users)) = found else { return NetworkStep::Create };
    if found.label.is_none() {
        return NetworkStep::Wait(format!(
            "this node has a Docker network {} of its own, which hides the cluster's: remove it there (docker network rm {})",
            plan.name, found.id
        ));
    }
    if is_right(plan, found) {
        // Containers work with another MTU too; it is changed once no container uses the network.
        let has_other_mtu = found.mtu != Some(plan.mtu);
        return if has_other_mtu && users.holders() == 0 { NetworkStep::Recreate } else { NetworkStep::Keep };
    }
    if users.holders() == 0 {
        return NetworkStep::Recreate;
    }
    let subnet = found.subnet.map_or_else(|| "no IPv4 subnet".to_owned(), |subnet| subnet.to_string());
    NetworkStep::Wait(format!(
        "the Docker network {} of this node is that of an earlier network ({subnet}), and {} of its containers have not ended: \
         remove them (docker ps --filter network={})",
        plan.name,
        users.holders(),
        found.id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned() -> AssignedNetwork {
        AssignedNetwork {
            id: "n5".into(),
            name: "app".to_owned(),
            number: 5,
            subnet: "10.0.5.0/24".parse().expect("a subnet"),
            subnet6: "fd00:55::/64".parse().ok(),
            node_address: [10, 0, 5, 2].into(),
            internal: false,
            mtu: None,
            address: [10, 0, 5, 7].into(),
            aliases: Vec::new(),
        }
    }

    fn found(plan: &NetworkPlan) -> NetworkFacts {
        NetworkFacts {
            id: "d0".to_owned(),
            name: plan.name.clone(),
            label: Some(plan.label.clone()),
            device: Some(plan.device.clone()),
            subnet: Some(plan.subnet),
            gateway: plan.gateway,
            mtu: Some(plan.mtu),
            internal: plan.internal,
            has_ipv6: plan.subnet6.is_some(),
        }
    }

    fn used_by(containers: usize) -> NetworkUsers {
        NetworkUsers { containers, unstarted_tasks: 0 }
    }

    #[test]
    fn a_network_is_made_once_and_kept() {
        let plan = plan(&assigned(), 1450);
        assert_eq!((plan.device.as_str(), plan.mtu, plan.internal), ("meshn5", 1450, true));
        let ipv6 = (plan.subnet6, plan.gateway6);
        assert_eq!(ipv6, ("fd00:55::/64".parse().ok(), "fd00:55::a00:502".parse().ok()));
        assert_eq!(decide(&plan, None), NetworkStep::Create);
        for users in [0, 3] {
            let found = (found(&plan), used_by(users));
            assert!(is_as_planned(&plan, &found.0));
            assert_eq!(decide(&plan, Some(&found)), NetworkStep::Keep, "{users} users");
        }
    }

    #[test]
    fn what_a_user_made_is_never_touched() {
        let plan = plan(&assigned(), 1450);
        for users in [0, 3] {
            let facts = NetworkFacts { label: None, ..found(&plan) };
            assert!(!is_as_planned(&plan, &facts));
            let step = decide(&plan, Some(&(facts, used_by(users))));
            let NetworkStep::Wait(reason) = step else { panic!("{users} users") };
            assert!(reason.contains("docker network rm d0"), "{reason}");
        }
    }

    #[test]
    fn a_wrong_network_is_made_anew_once_nothing_uses_it() {
        let plan = plan(&assigned(), 1450);
        let right = found(&plan);
        let wrong = [
            NetworkFacts { label: Some("n4".to_owned()), ..right.clone() },
            NetworkFacts { label: Some(String::new()), ..right.clone() },
            NetworkFacts { subnet: "10.0.6.0/24".parse().ok(), ..right.clone() },
            NetworkFacts { gateway: Some([10, 0, 5, 3].into()), ..right.clone() },
            NetworkFacts { device: Some("meshn6".to_owned()), ..right.clone() },
            NetworkFacts { internal: false, ..right.clone() },
            NetworkFacts { has_ipv6: false, ..right.clone() },
        ];
        for facts in wrong {
            assert!(!is_as_planned(&plan, &facts), "{facts:?}");
            let unused = (facts.clone(), used_by(0));
            assert_eq!(decide(&plan, Some(&unused)), NetworkStep::Recreate, "{unused:?}");
            let unstarted = (facts.clone(), NetworkUsers { containers: 1, unstarted_tasks: 1 });
            assert_eq!(decide(&plan, Some(&unstarted)), NetworkStep::Recreate, "{unstarted:?}");
            let used = (facts, NetworkUsers { containers: 3, unstarted_tasks: 1 });
            let NetworkStep::Wait(reason) = decide(&plan, Some(&used)) else { panic!("{used:?}") };
            assert!(reason.contains("2 of its containers") && reason.contains("docker ps"), "{reason}");
        }
        let mtu = NetworkFacts { mtu: Some(1400), ..right };
        assert!(!is_as_planned(&plan, &mtu), "its users decide");
        assert_eq!(decide(&plan, Some(&(mtu.clone(), used_by(0)))), NetworkStep::Recreate);
        assert_eq!(decide(&plan, Some(&(mtu, used_by(1)))), NetworkStep::Keep);
    }
}
