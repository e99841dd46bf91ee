//! Clients that may use the Docker API from other machines, by certificates of the cluster's CA.
//!
//! Invariant: a client's certificate opens the API only while this record names it, so deleting the
//! record revokes it.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// The longest name of a client, in bytes: as long as a certificate's common name.
pub const NAME_BYTES: usize = 64;

/// A client with its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteClient {
    /// The client's name, which is in its certificate and in managers' logs.
    pub name: String,
    /// SHA-256 of its certificate.
    pub certificate: String,
    /// SHA-256 of the certificate of the CA that signed it.
    pub issuer: String,
    /// When the certificate was issued.
    pub created_at: Timestamp,
    /// When the certificate expires.
    pub until: Timestamp,
}

/// Whether a client can have this name: letters, digits, `-`, `_` and `.`, the first one a letter
/// or a digit.
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= NAME_BYTES
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_words() {
        for good in ["alice", "ci-7", "a.b_c", "0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a/b", "..", "-x", "ü", "a b", &"x".repeat(NAME_BYTES + 1)] {
            assert!(!is_name(bad), "{bad:?} was taken");
        }
    }
}
