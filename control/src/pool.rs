//! The pools of addresses, chosen when the cluster is created: one for tasks, of which each node
//! gets a subnet, and one for networks, of which each network gets a subnet.
//!
//! Pure. A manager that is configured with another pool than the cluster's doesn't start: nodes and
//! networks have their subnets already.

use ipnet::Ipv4Net;
use mesh_state::cluster::{Cluster, network_pool, network_prefix, task_pool};
use thiserror::Error;

/// The default prefix length of a node's subnet.
const DEFAULT_PREFIX: u8 = 24;
/// The allowed prefix lengths of a node's subnet: from 14 tasks to 65 533.
const PREFIXES: std::ops::RangeInclusive<u8> = 16..=28;

/// The flags that name the pools.
const TASKS_FLAG: &str = "--default-addr-pool";
const NETWORKS_FLAG: &str = "--network-addr-pool";
/// The longest prefix of a network's subnet, as in Swarm.
const NETWORK_PREFIX_MAX: u8 = 29;

/// The pool of tasks' addresses in this manager's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WantedPool {
    pool: Option<Ipv4Net>,
    prefix: Option<u8>,
}

/// Why a pool is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// An address instead of a network.
    #[error("{flag} {given}: the network is {network}")]
    HostBits {
        /// The flag that the pool was given with.
        flag: &'static str,
        /// The configured value.
        given: Ipv4Net,
        /// The network that contains it.
        network: Ipv4Net,
    },
    /// Addresses that tasks can't have.
    #[error("{flag} {pool}: tasks can't have loopback, link-local or multicast addresses")]
    Unusable {
        /// The flag that the pool was given with.
        flag: &'static str,
        /// The configured value.
        pool: Ipv4Net,
    },
    /// A network's subnet is too large for the pool, or too small for a network.
    #[error("--network-addr-pool-mask-length {prefix}: a network's subnet of {pool} is a /{least} to a /29")]
    NetworkPrefix {
        /// The configured value.
        prefix: u8,
        /// The pool that networks get their subnets from.
        pool: Ipv4Net,
        /// The shortest good one.
        least: u8,
    },
    /// The cluster was made with another pool for networks.
    #[error(
        "this cluster's networks have their subnets out of {pool}, a /{prefix} each: start without --network-addr-pool, \
         or make a new cluster"
    )]
    AnotherForNetworks {
        /// The cluster's pool.
        pool: Ipv4Net,
        /// The cluster's prefix.
        prefix: u8,
    },
    /// A node's subnet is larger than the pool, or out of bounds.
    #[error("--default-addr-pool-mask-length {prefix}: a node's part of {pool} is a /{least} to a /28")]
    Prefix {
        /// The configured prefix length.
        prefix: u8,
        /// The pool that nodes get their parts from.
        pool: Ipv4Net,
        /// The shortest allowed one.
        least: u8,
    },
    /// The cluster was created with another pool.
    #[error(
        "this cluster's tasks have their addresses out of {pool}, a /{prefix} for each node: start without --default-addr-pool, \
         or make a new cluster"
    )]
    Another {
        /// The cluster's pool.
        pool: Ipv4Net,
        /// The cluster's prefix.
        prefix: u8,
    },
}

impl WantedPool {
    /// Checks the configured values.
    ///
    /// # Errors
    /// The first mistake.
    pub fn new(pool: Option<Ipv4Net>, prefix: Option<u8>) -> Result<Self, PoolError> {
        let wanted = Self { pool, prefix };
        let (network, prefix) = (wanted.pool(), wanted.prefix());
        check_addresses(TASKS_FLAG, network)?;
        let least = network.prefix_len().max(*PREFIXES.start());
        if prefix < least || !PREFIXES.contains(&prefix) {
            return Err(PoolError::Prefix { prefix, pool: network, least });
        }
        Ok(wanted)
    }

    /// The pool of a new cluster.
    pub fn pool(&self) -> Ipv4Net {
        self.pool.unwrap_or_else(task_pool)
    }

    /// The prefix length of each node's subnet.
    pub fn prefix(&self) -> u8 {
        self.prefix.unwrap_or(DEFAULT_PREFIX)
    }

    /// Checks that an existing cluster has the configured pool, if one is configured.
    ///
    /// # Errors
    /// It has another.
    pub fn check(&self, cluster: &Cluster) -> Result<(), PoolError> {
        let same = self.pool.is_none_or(|pool| pool == cluster.subnet_pool)
            && self.prefix.is_none_or(|prefix| prefix == cluster.subnet_prefix);
        let (pool, prefix) = (cluster.subnet_pool, cluster.subnet_prefix);
        if same { Ok(()) } else { Err(PoolError::Another { pool, prefix }) }
    }
}

/// What this manager was told of the pool of networks' subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WantedNetworkPool {
    pool: Option<Ipv4Net>,
    prefix: Option<u8>,
}

impl WantedNetworkPool {
    /// Checks what the command line says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(pool: Option<Ipv4Net>, prefix: Option<u8>) -> Result<Self, PoolError> {
        let wanted = Self { pool, prefix };
        let (pool, prefix) = (wanted.pool(), wanted.prefix());
        check_addresses(NETWORKS_FLAG, pool)?;
        let least = pool.prefix_len();
        if !(least..=NETWORK_PREFIX_MAX).contains(&prefix) {
            return Err(PoolError::NetworkPrefix { prefix, pool, least });
        }
        Ok(wanted)
    }

    /// The pool of a new cluster.
    pub fn pool(&self) -> Ipv4Net {
        self.pool.unwrap_or(network_pool())
    }

    /// Each network's part of it.
    pub fn prefix(&self) -> u8 {
        self.prefix.unwrap_or(network_prefix())
    }

    /// Whether a cluster that exists has the pool that was asked for.
    ///
    /// # Errors
    /// It has another.
    pub fn check(&self, cluster: &Cluster) -> Result<(), PoolError> {
        let (pool, prefix) = (cluster.network_pool, cluster.network_prefix);
        let same = self.pool.is_none_or(|wanted| wanted == pool)
            && self.prefix.is_none_or(|wanted| wanted == prefix);
        if same { Ok(()) } else { Err(PoolError::AnotherForNetworks { pool, prefix }) }
    }
}

/// Whether tasks can have the addresses of a pool.
fn check_addresses(flag: &'static str, pool: Ipv4Net) -> Result<(), PoolError> {
    if pool != pool.trunc() {
        return Err(PoolError::HostBits { flag, given: pool, network: pool.trunc() });
    }
    let first = pool.network();
    if first.is_loopback() || first.is_link_local() || first.is_multicast() || first.octets()[0] == 0 {
        return Err(PoolError::Unusable { flag, pool });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pool: &str, prefix: Option<u8>) -> Result<WantedPool, PoolError> {
        WantedPool::new(Some(pool.parse().unwrap()), prefix)
    }

    #[test]
    fn a_pool_is_a_network_of_usable_addresses_with_room_for_nodes() {
        assert_eq!(wanted("172.20.0.0/14", Some(26)).map(|wanted| wanted.prefix()), Ok(26));
        assert_eq!(wanted("100.64.0.0/24", None).map(|wanted| wanted.prefix()), Ok(24), "one node");
        for (pool, prefix) in [
            ("172.20.0.1/14", None),
            ("127.0.0.0/8", None),
            ("169.254.0.0/16", None),
            ("224.0.0.0/8", None),
            ("0.0.0.0/8", None),
            ("172.20.0.0/25", None),
            ("172.20.0.0/14", Some(13)),
            ("172.20.0.0/14", Some(29)),
        ] {
            let refused = wanted(pool, prefix).expect_err(pool).to_string();
            assert!(refused.starts_with("--default-addr-pool"), "{refused}");
        }
    }

    #[test]
    fn networks_have_a_pool_of_their_own() {
        let wanted = |pool: &str, prefix| WantedNetworkPool::new(Some(pool.parse().unwrap()), prefix);
        let cluster = crate::fixtures::cluster();
        assert_eq!(WantedNetworkPool::default().check(&cluster), Ok(()), "nothing was asked for");
        assert_eq!(wanted("10.0.0.0/8", Some(24)).unwrap().check(&cluster), Ok(()));
        let refused = wanted("172.20.0.0/14", None).unwrap().check(&cluster).unwrap_err().to_string();
        assert!(refused.contains("10.0.0.0/8, a /24"), "{refused}");
        for (pool, prefix) in [
            ("172.20.0.1/14", None),
            ("224.0.0.0/8", None),
            ("172.20.0.0/25", None),
            ("172.20.0.0/14", Some(13)),
            ("172.20.0.0/14", Some(30)),
        ] {
            let refused = wanted(pool, prefix).expect_err(pool).to_string();
            assert!(refused.starts_with("--network-addr-pool"), "{refused}");
        }
    }

    #[test]
    fn a_cluster_keeps_its_pool() {
        let cluster = crate::fixtures::cluster();
        assert_eq!(WantedPool::default().check(&cluster), Ok(()), "no pool is configured");
        assert_eq!(wanted("10.128.0.0/12", Some(24)).unwrap().check(&cluster), Ok(()));
        for (pool, prefix) in [("172.20.0.0/14", None), ("10.128.0.0/12", Some(26))] {
            let refused = wanted(pool, prefix).unwrap().check(&cluster).expect_err(pool).to_string();
            assert!(refused.contains("10.128.0.0/12, a /24"), "{refused}");
        }
    }
}
