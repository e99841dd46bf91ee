//! Network objects as far as the CLI needs them: the ingress network that published ports belong to.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::NetworkId;

/// A cluster-wide network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique.
    pub name: String,
    /// Whether this is the network of published ports.
    pub ingress: bool,
    /// Where its addresses come from.
    pub subnet: Ipv4Net,
    /// When it was made.
    pub created_at: Timestamp,
}
