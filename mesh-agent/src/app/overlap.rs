//! Detects whether tasks' networks and the host's own overlap: clients and hosts at such addresses
//! would get no answer, as packets to them go to tasks. Managers are told the host's networks, so
//! that they give no network of users a subnet with addresses of the host, and place no task on one
//! here.
//!
//! Invariant: an address of the host, or a route of it that leads into a task network, makes the
//! node unfit, and the reason names the networks and the next step; a route that merely covers one
//! (10.0.0.0/8 by a gateway, say) is only logged, as no host of it need be there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_state::report::clip_host_networks;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::datapath::{HostNetwork, host_networks};
use crate::view::NodeView;

/// How often the host's networks are compared, in addition to each change of the nodes.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How a network of the host overlaps the network of the tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Overlap {
    /// The host's network is inside the tasks' network, or equal to it.
    Inside(HostNetwork, Ipv4Net),
    /// The host has a route to a larger network.
    Covers(HostNetwork, Ipv4Net),
}

/// What is known of the host's networks.
pub(super) struct HostNetworks {
    /// Why this node can take no tasks because of them.
    pub(super) unfit: watch::Sender<Option<String>>,
    /// All of them, for managers; absent until they were read.
    pub(super) told: watch::Sender<Option<Vec<Ipv4Net>>>,
}

/// Publishes the host's networks, and why this node can take no tasks because of them (`None` if it
/// can), until `shutdown`.
pub(super) async fn watch_overlaps(
    mut views: watch::Receiver<Arc<NodeView>>,
    found: HostNetworks,
    shutdown: CancellationToken,
) {
    let HostNetworks { unfit, told } = found;
    let mut covered = BTreeSet::new();
    loop {
        let subnets = task_subnets(&views.borrow_and_update());
        match tokio::task::spawn_blocking(host_networks).await {
            Ok(Ok(networks)) => {
                report(&find(&networks, &subnets), &unfit, &mut covered);
                tell(&networks, &told);
            }
            Ok(Err(error)) => tracing::warn!(
                error = mesh_runtime::error_chain(&error),
                "can't compare the host's networks with the tasks'"
            ),
            // A panic in the blocking task ends this future, and with it the agent.
            Err(_) => return,
        }
        let others = views.wait_for(|view| task_subnets(view) != subnets);
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = others => if changed.is_err() { return },
            () = sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Publishes the host's networks for managers if they have changed.
fn tell(networks: &[HostNetwork], told: &watch::Sender<Option<Vec<Ipv4Net>>>) {
    let mut networks: Vec<Ipv4Net> = networks.iter().map(|host| host.network).collect();
    let is_cut = clip_host_networks(&mut networks);
    told.send_if_modified(|present| {
        let changed = present.as_ref() != Some(&networks);
        if changed && is_cut {
            tracing::warn!("this host has more routes than managers are told: some may overlap unseen");
        }
        if changed {
            *present = Some(networks);
        }
        changed
    });
}

/// The networks of all nodes' tasks.
fn task_subnets(view: &NodeView) -> BTreeSet<Ipv4Net> {
    view.nodes.values().filter_map(|node| node.subnet).chain(view.subnet).collect()
}

fn find(networks: &[HostNetwork], subnets: &BTreeSet<Ipv4Net>) -> Vec<Overlap> {
    let pairs = networks.iter().flat_map(|host| subnets.iter().map(move |subnet| (host, *subnet)));
    pairs
        .filter_map(|(host, subnet)| {
            if subnet.contains(&host.network) {
                Some(Overlap::Inside(host.clone(), subnet))
            } else if host.network.contains(&subnet) {
                Some(Overlap::Covers(host.clone(), subnet))
            } else {
                None
            }
        })
        .collect()
}

fn report(found: &[Overlap], unfit: &watch::Sender<Option<String>>, covered: &mut BTreeSet<String>) {
    let mut why = None;
    let mut covering = BTreeSet::new();
    for overlap in found {
        match overlap {
            Overlap::Inside(host, subnet) => {
                why.get_or_insert_with(|| {
                    format!(
                        "{} on {} is in the network {subnet} of tasks: take it off this node, or make the cluster with another \
                         mesh-control --default-addr-pool",
                        host.network, host.device
                    )
                });
            }
            Overlap::Covers(host, subnet) => {
                covering.insert(format!("{} by {} covers {subnet}", host.network, host.device));
            }
        }
    }
    for route in covering.difference(covered) {
        tracing::warn!(route, "a route of this host covers tasks' addresses: hosts at those get no answer");
    }
    *covered = covering;
    unfit.send_if_modified(|present| {
        let changed = *present != why;
        if changed && let Some(why) = &why {
            tracing::error!(why, "this node takes no tasks: its networks overlap with tasks'");
        }
        *present = why;
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaps(host: &str, subnet: &str) -> Vec<Overlap> {
        let host = HostNetwork { network: host.parse().unwrap(), device: "eth0".to_owned() };
        find(&[host], &[subnet.parse().unwrap()].into())
    }

    #[test]
    fn what_is_in_a_task_network_makes_the_node_unfit_and_what_covers_it_is_only_said() {
        for inside in ["10.128.0.5/32", "10.128.0.0/24", "10.128.0.64/26"] {
            let found = overlaps(inside, "10.128.0.0/24");
            assert!(matches!(found.as_slice(), [Overlap::Inside(..)]), "{inside}: {found:?}");
        }
        for covers in ["10.0.0.0/8", "10.128.0.0/20"] {
            let found = overlaps(covers, "10.128.0.0/24");
            assert!(matches!(found.as_slice(), [Overlap::Covers(..)]), "{covers}: {found:?}");
        }
        for apart in ["10.128.1.0/24", "192.168.0.0/16", "172.17.0.1/32"] {
            assert_eq!(overlaps(apart, "10.128.0.0/24"), [], "{apart}");
        }
    }

    #[test]
    fn managers_are_told_of_changes_alone() {
        let host =
            |network: &str| HostNetwork { network: network.parse().unwrap(), device: "eth0".to_owned() };
        let (told, mut seen) = watch::channel(None);
        tell(&[host("192.168.1.7/24"), host("10.0.0.0/8"), host("10.0.0.0/8")], &told);
        let networks = ["10.0.0.0/8", "192.168.1.0/24"].map(|network| network.parse().unwrap());
        assert_eq!(seen.borrow_and_update().as_deref(), Some(&networks[..]));
        tell(&[host("10.0.0.0/8"), host("192.168.1.0/24")], &told);
        assert!(!seen.has_changed().unwrap(), "the same networks in another order are no news");
        tell(&[], &told);
        assert_eq!(seen.borrow_and_update().as_deref(), Some(&[][..]));
    }

    #[test]
    fn the_reason_names_both_networks_and_what_to_do_and_goes_with_the_overlap() {
        let (unfit, seen) = watch::channel(None);
        let mut covered = BTreeSet::new();
        report(&overlaps("10.128.0.5/32", "10.128.0.0/24"), &unfit, &mut covered);
        let why = seen.borrow().clone().expect("it is unfit");
        for word in ["10.128.0.5/32", "eth0", "10.128.0.0/24", "--default-addr-pool"] {
            assert!(why.contains(word), "expected {word} in: {why}");
        }
        report(&overlaps("10.0.0.0/8", "10.128.0.0/24"), &unfit, &mut covered);
        assert_eq!(*seen.borrow(), None);
        assert_eq!(covered.len(), 1, "a covering route is said once");
    }
}
