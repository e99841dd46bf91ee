//! The Docker network of this node's tasks: a bridge named [`NETWORK_NAME`] on the subnet that
//! control assigned.
//!
//! Invariants: [`decide`] is pure; a network that containers use is never removed.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_ebpf::abi::TASKS_PREFIX6;

use super::networks::{NetworkFacts, NetworkPlan, NetworkStep, NetworkUsers};

/// The network's name, under which tasks' addresses are found in the engine's answers.
pub const NETWORK_NAME: &str = "mesh";
/// The bridge device.
pub const DEVICE: &str = "mesh0";

/// The network as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgePlan {
    /// Its subnet; absent until control has assigned one.
    pub subnet: Option<Ipv4Net>,
    /// Whether it has IPv6 addresses as well.
    pub with_ipv6: bool,
    /// Its MTU in bytes: the uplink's, less what the tunnel adds.
    pub mtu: u32,
}

/// How much longer the IPv6 prefix is than the IPv4 subnet's.
const PREFIX6_BITS: u8 = 96;

impl BridgePlan {
    /// The IPv6 subnet.
    pub fn subnet6(&self) -> Option<Ipv6Net> {
        subnet6_of(self.subnet.filter(|_| self.with_ipv6)?)
    }

    /// The Docker network, once it has a subnet.
    pub fn network(&self) -> Option<NetworkPlan> {
        let subnet = self.subnet?;
        Some(NetworkPlan {
            name: NETWORK_NAME.to_owned(),
            label: String::new(),
            device: DEVICE.to_owned(),
            subnet,
            gateway: Some(gateway_of(subnet)),
            subnet6: self.subnet6(),
            gateway6: None,
            mtu: self.mtu,
            internal: false,
        })
    }
}

/// The node's own address on the network: the first of its subnet, which is also what an engine
/// chooses by itself.
pub fn gateway_of(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

/// The IPv6 subnet that belongs to a node's IPv4 subnet. It is unique in the cluster, as the IPv4
/// subnets are.
pub fn subnet6_of(subnet: Ipv4Net) -> Option<Ipv6Net> {
    let address = Ipv6Addr::from(TASKS_PREFIX6 | u128::from(u32::from(subnet.network())));
    Ipv6Net::new(address, PREFIX6_BITS + subnet.prefix_len()).ok()
}

/// Decides what to do about the network.
pub fn decide(plan: &BridgePlan, found: Option<&(NetworkFacts, NetworkUsers)>) -> NetworkStep {
    match (plan.subnet, found) {
        (None, None) => NetworkStep::Wait("no manager has given this node a subnet yet".to_owned()),
        (None, Some(_)) => NetworkStep::Keep,
        (Some(_), None) => NetworkStep::Create,
        (Some(wanted), Some((facts, users))) if facts.subnet == Some(wanted) => {
            // A network without IPv6 can be used as well; it is made anew with IPv6 once no
            // container uses it.
            let lacks_ipv6 = plan.with_ipv6 && !facts.has_ipv6;
            if lacks_ipv6 && users.containers == 0 { NetworkStep::Recreate } else { NetworkStep::Keep }
        }
        (Some(_), Some((_, users))) if users.containers == 0 => NetworkStep::Recreate,
        (Some(wanted), Some((facts, users))) => {
            let found = facts.subnet.map_or_else(|| "no IPv4 subnet".to_owned(), |subnet| subnet.to_string());
            NetworkStep::Wait(format!(
                "the Docker network {NETWORK_NAME} has {found}, this node was given {wanted}, and {} containers use it: remove them",
                users.containers
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used_by(containers: usize) -> NetworkUsers {
        NetworkUsers { containers, unstarted_tasks: 0 }
    }

    fn check(wanted: Option<&str>, found: Option<(&str, usize)>, expected: &NetworkStep) {
        let net = |text: &str| text.parse().unwrap();
        let plan = BridgePlan { subnet: wanted.map(net), with_ipv6: true, mtu: 1450 };
        let found_network = found.map(|(subnet, users)| {
            let subnet = Some(net(subnet));
            (NetworkFacts { subnet, has_ipv6: true, ..NetworkFacts::default() }, used_by(users))
        });
        assert_eq!(decide(&plan, found_network.as_ref()), *expected, "wanted {wanted:?}, found {found:?}");
    }

    #[test]
    fn ipv6_comes_when_nothing_uses_the_network() {
        let subnet = "10.128.1.0/24".parse().ok();
        let plan = BridgePlan { subnet, with_ipv6: true, mtu: 1450 };
        assert_eq!(plan.subnet6().map(|net| net.to_string()).as_deref(), Some("fd6d:6573:68::a80:100/120"));
        let facts = |users| (NetworkFacts { subnet, ..NetworkFacts::default() }, used_by(users));
        assert_eq!(decide(&plan, Some(&facts(0))), NetworkStep::Recreate);
        assert_eq!(decide(&plan, Some(&facts(1))), NetworkStep::Keep);
        assert_eq!(decide(&BridgePlan { with_ipv6: false, ..plan }, Some(&facts(0))), NetworkStep::Keep);
    }

    #[test]
    fn the_network_is_made_once_and_never_taken_from_a_container() {
        let (ours, other) = ("10.128.1.0/24", "10.128.2.0/24");
        check(Some(ours), None, &NetworkStep::Create);
        check(Some(ours), Some((ours, 3)), &NetworkStep::Keep);
        check(Some(ours), Some((other, 0)), &NetworkStep::Recreate);
        check(None, Some((ours, 3)), &NetworkStep::Keep);
        let NetworkStep::Wait(reason) = decide(
            &BridgePlan { subnet: ours.parse().ok(), with_ipv6: true, mtu: 1450 },
            Some(&(
                NetworkFacts { subnet: other.parse().ok(), has_ipv6: true, ..NetworkFacts::default() },
                used_by(2),
            )),
        ) else {
            panic!("a network in use must stay");
        };
        assert!(
            reason.contains(ours) && reason.contains(other) && reason.contains("2 containers"),
            "{reason}"
        );
    }
}
