//! Ports that mesh itself needs, which no service may publish: those of managers and their etcd, and those of every node's agent.
//!
//! Pure. Managers tell theirs in `/managers/{name}`, agents theirs in the node's description; together they are what the cluster
//! is set to, whatever that is.

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::node::OwnPort;
use mesh_state::spec::Protocol;

use crate::config::Config;
use crate::snapshot::ClusterSnapshot;

/// Ports of a node's agent that are taken into account: more than it has, so that no node can keep all ports from services.
const NODE_PORTS_MAX: usize = 16;

/// What this manager listens on, and what its etcd does.
pub fn of_manager(config: &Config, etcd: BTreeSet<u16>) -> Vec<OwnPort> {
    let own = [
        OwnPort::new(Protocol::Tcp, config.node_listen.port(), "agents' streams to managers"),
        OwnPort::new(Protocol::Tcp, config.metrics_listen.port(), "managers' metrics"),
    ];
    own.into_iter().chain(etcd.into_iter().map(|port| OwnPort::new(Protocol::Tcp, port, "etcd"))).collect()
}

/// The ports in URLs like `http://10.0.0.1:2379`.
pub fn of_urls(urls: &[String]) -> BTreeSet<u16> {
    urls.iter().filter_map(|url| mesh_state::store::port_of(url)).collect()
}

/// Every port that mesh needs somewhere in the cluster, with what it is for.
pub fn reserved(snapshot: &ClusterSnapshot) -> BTreeMap<(Protocol, u16), &str> {
    let managers = snapshot.managers.values().flat_map(|manager| &manager.value.own_ports);
    let agents =
        snapshot.nodes.values().flat_map(|node| node.value.description.own_ports.iter().take(NODE_PORTS_MAX));
    agents.chain(managers).map(|own| ((own.protocol, own.port), own.purpose.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_manager_names_its_ports_and_its_etcds_whatever_they_are_set_to() {
        let flags =
            ["--advertise", "10.0.0.1", "--node-listen", "0.0.0.0:7000", "--metrics-listen", "[::]:7001"];
        let cli = Cli::try_parse_from(["mesh-control"].iter().chain(&flags)).unwrap();
        let config = Config::new(cli, Some("a".to_owned())).unwrap();
        let urls = ["http://10.0.0.1:7002", "https://[fd00::1]:7003/", "http://etcd"];
        let own = of_manager(&config, of_urls(&urls.map(str::to_owned)));
        let ports: Vec<(u16, &str)> = own.iter().map(|own| (own.port, own.purpose.as_str())).collect();
        let expected = [
            (7000, "agents' streams to managers"),
            (7001, "managers' metrics"),
            (7002, "etcd"),
            (7003, "etcd"),
        ];
        assert_eq!(ports, expected);
    }
}
