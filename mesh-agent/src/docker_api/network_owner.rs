//! Whose network a client means: the engine's or the cluster's. Pure.

use std::cmp::Ordering;

use serde_json::Value;

use super::error::ApiError;
use super::overlay::cluster_id;

/// Who has a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The engine of this node.
    Engine,
    /// The cluster's managers have the network.
    Cluster,
    /// The cluster, as far as the engine's bridge tells: the manager can't be asked, or doesn't
    /// know the network by the bridge's id.
    Bridge,
    /// Neither the cluster nor the engine has the network.
    Nobody,
}

/// What the manager says of a network.
#[derive(Debug)]
pub(super) enum Cluster {
    /// The cluster has it.
    Has(Value),
    /// The cluster has none that is meant.
    HasNot,
    /// Nobody can be asked.
    Away,
}

impl Owner {
    /// Decides whose network `query` names: a full id comes before a name, a name before the
    /// beginning of an id.
    pub(super) fn of(local: Option<&Value>, cluster: &Cluster, query: &str) -> Result<Self, ApiError> {
        let by = |network: &Value| {
            if network["Id"] == query {
                MatchKind::Id
            } else if network["Name"] == query {
                MatchKind::Name
            } else {
                MatchKind::Prefix
            }
        };
        let bridge = local.filter(|local| cluster_id(local).is_some());
        let (local, cluster) = match (bridge, cluster) {
            (Some(bridge), Cluster::HasNot) if by(bridge) == MatchKind::Name => return Ok(Self::Nobody),
            (Some(_), Cluster::HasNot | Cluster::Away) => return Ok(Self::Bridge),
            (Some(_), Cluster::Has(network)) => (None, Some(network)),
            (None, Cluster::Has(network)) => (local, Some(network)),
            (None, Cluster::HasNot | Cluster::Away) => (local, None),
        };
        match (local.map(by), cluster.map(by)) {
            (None, None) => Ok(Self::Nobody),
            (Some(_), None) => Ok(Self::Engine),
            (None, Some(_)) => Ok(Self::Cluster),
            (Some(local), Some(cluster)) => match local.cmp(&cluster) {
                Ordering::Less => Ok(Self::Engine),
                Ordering::Greater => Ok(Self::Cluster),
                Ordering::Equal => Err(ApiError::AmbiguousNetwork {
                    query: query.to_owned(),
                    basis: if local == MatchKind::Prefix { "ID prefix" } else { "name" },
                }),
            },
        }
    }
}

/// How a query matches a network, the best match first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum MatchKind {
    Id,
    Name,
    Prefix,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_network_that_is_meant_equally_is_ambiguous() {
        let (bridge, overlay) = (json!({"Id": "ab1", "Name": "dup"}), json!({"Id": "ab2", "Name": "dup"}));
        let overlay = Cluster::Has(overlay);
        let owner =
            |query: &str| Owner::of(Some(&bridge), &overlay, query).map_err(|error| error.to_string());
        assert_eq!(owner("ab1"), Ok(Owner::Engine));
        assert_eq!(owner("ab2"), Ok(Owner::Cluster));
        assert_eq!(owner("dup"), Err("network dup is ambiguous (2 matches found based on name)".to_owned()));
        assert_eq!(
            owner("ab"),
            Err("network ab is ambiguous (2 matches found based on ID prefix)".to_owned())
        );
        let named_ab = Cluster::Has(json!({"Id": "zz", "Name": "ab"}));
        assert_eq!(Owner::of(Some(&bridge), &named_ab, "ab").unwrap(), Owner::Cluster, "a name wins");
        assert_eq!(Owner::of(Some(&bridge), &Cluster::HasNot, "ab").unwrap(), Owner::Engine);
        assert_eq!(Owner::of(None, &Cluster::Away, "ab").unwrap(), Owner::Nobody);
    }

    #[test]
    fn a_bridge_of_the_clusters_is_the_cluster() {
        let bridge = json!({"Id": "b1", "Name": "app", "Labels": {"mesh.network": "n1"}});
        let owner = |cluster: &Cluster, query: &str| Owner::of(Some(&bridge), cluster, query).unwrap();
        let has = Cluster::Has(json!({"Id": "n1", "Name": "app"}));
        assert_eq!(owner(&has, "app"), Owner::Cluster, "no name is ambiguous by it");
        assert_eq!(owner(&Cluster::Away, "app"), Owner::Bridge);
        assert_eq!(owner(&Cluster::HasNot, "app"), Owner::Nobody, "the network was removed");
        assert_eq!(owner(&Cluster::HasNot, "b1"), Owner::Bridge, "its id in the engine");
    }
}
