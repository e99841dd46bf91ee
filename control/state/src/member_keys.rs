//! The record of the secrets that members share, as it is stored: without the secrets. Each is
//! derived from the managers' key file and a salt.
//!
//! Members sign relay preambles with the one in use, and derive the tunnel's cookies from it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::NodeId;

/// One secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberKey {
    /// Its number; a newer one has a larger number.
    pub id: u64,
    /// The salt that it is derived with; empty for the first one, which is the cluster's relay key.
    pub salt: String,
    /// When it was made.
    pub made_at: Timestamp,
}

/// The valid secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberKeys {
    /// The one in use, then at most one more that members accept: the next one, or the one before.
    pub keys: Vec<MemberKey>,
    /// Whether a tunnel packet without a cookie is refused: all members send them.
    pub cookies_demanded: bool,
    /// Nodes that may have the newest secret.
    pub known_to: BTreeSet<NodeId>,
    /// When this record was last changed.
    pub changed_at: Timestamp,
}
