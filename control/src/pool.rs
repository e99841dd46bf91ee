//! The pool of tasks' addresses, of which each node gets a subnet. Chosen when the cluster is
//! created.
//!
//! Pure. A manager that is configured with another pool than the cluster's doesn't start: nodes
//! have their subnets already.

use ipnet::Ipv4Net;
use mesh_state::cluster::Cluster;
use thiserror::Error;

/// The default pool: as many /24 as 4 096 nodes need, apart from what engines give their own
/// networks.
const DEFAULT: ([u8; 4], u8) = ([10, 128, 0, 0], 12);
/// The default prefix length of a node's subnet.
const DEFAULT_PREFIX: u8 = 24;
/// The allowed prefix lengths of a node's subnet: from 14 tasks to 65 533.
const PREFIXES: std::ops::RangeInclusive<u8> = 16..=28;

/// The pool in this manager's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WantedPool {
    pool: Option<Ipv4Net>,
    prefix: Option<u8>,
}

/// Why a pool is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// An address instead of a network.
    #[error("--default-addr-pool {given}: the network is {network}")]
    HostBits {
        /// The configured value.
        given: Ipv4Net,
        /// The network that contains it.
        network: Ipv4Net,
    },
    /// Addresses that tasks can't have.
    #[error("--default-addr-pool {0}: tasks can't have loopback, link-local or multicast addresses")]
    Unusable(Ipv4Net),
    /// A node's subnet is larger than the pool, or out of bounds.
    #[error("--default-addr-pool-mask-length {prefix}: a node's part of {pool} is a /{least} to a /28")]
    Prefix {
        /// The configured prefix length.
        prefix: u8,
        /// The pool.
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
        if network != network.trunc() {
            return Err(PoolError::HostBits { given: network, network: network.trunc() });
        }
        let first = network.network();
        if first.is_loopback() || first.is_link_local() || first.is_multicast() || first.octets()[0] == 0 {
            return Err(PoolError::Unusable(network));
        }
        let least = network.prefix_len().max(*PREFIXES.start());
        if prefix < least || !PREFIXES.contains(&prefix) {
            return Err(PoolError::Prefix { prefix, pool: network, least });
        }
        Ok(wanted)
    }

    /// The pool of a new cluster.
    pub fn pool(&self) -> Ipv4Net {
        let (address, prefix) = DEFAULT;
        self.pool.unwrap_or_else(|| Ipv4Net::new_assert(address.into(), prefix))
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
