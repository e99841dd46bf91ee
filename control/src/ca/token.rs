//! Join tokens, `SWMTKN-1-<CA digest>-<secret>`: they tell a node which CA to trust, and the
//! cluster which role to give it.
//!
//! Invariant: secrets are compared in constant time and never shown by `Debug`.

use std::fmt;

use mesh_state::node::NodeRole;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const PREFIX: &str = "SWMTKN-1";

/// SHA-256 of a certificate in DER, in lowercase hex.
pub fn certificate_digest(der: &[u8]) -> String {
    format!("{:x}", Sha256::digest(der))
}

/// The two tokens of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinTokens {
    /// Lets a node join as a worker.
    pub worker: String,
    /// Lets a node join as a manager.
    pub manager: String,
}

impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinTokens")
    }
}

impl JoinTokens {
    /// The tokens for the CA with this digest, with these secrets.
    pub fn new(ca_digest: &str, worker_secret: &str, manager_secret: &str) -> Self {
        let token = |secret: &str| format!("{PREFIX}-{ca_digest}-{secret}");
        Self { worker: token(worker_secret), manager: token(manager_secret) }
    }

    /// The role for the token `presented`; `None` if it is neither token.
    pub fn role_of(&self, presented: &str) -> Option<NodeRole> {
        let is = |token: &str| bool::from(token.as_bytes().ct_eq(presented.trim().as_bytes()));
        // Both are compared, for constant time.
        match (is(&self.manager), is(&self.worker)) {
            (true, _) => Some(NodeRole::Manager),
            (false, true) => Some(NodeRole::Worker),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_gives_its_role_and_no_other_text_gives_any() {
        let digest = certificate_digest(b"abc");
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let tokens = JoinTokens::new(&digest, "wwww", "mmmm");
        assert_eq!(tokens.worker, format!("SWMTKN-1-{digest}-wwww"));
        assert_eq!(tokens.role_of(&tokens.worker), Some(NodeRole::Worker));
        assert_eq!(tokens.role_of(&format!("{}\n", tokens.manager)), Some(NodeRole::Manager));
        for bad in ["", "SWMTKN-1--wwww", &tokens.worker[..tokens.worker.len() - 1]] {
            assert_eq!(tokens.role_of(bad), None, "{bad:?} gave a role");
        }
    }
}
