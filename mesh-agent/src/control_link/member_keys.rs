//! The secrets that all members share: relay preambles are signed with them, and tunnel cookies are
//! derived from them.
//!
//! Invariants: at most [`LIVE_MAX`] secrets are valid at a time; a rotation breaks no connection,
//! as all members know a secret before one uses it, and use it before the previous one is dropped.
//! The managers time these steps.

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;

use super::relay_keys::{RelayKey, RelayKeys};

/// The most secrets that are valid at a time.
pub const LIVE_MAX: usize = 2;

/// The label of the tunnel key's derivation, so that it differs from the relay key.
const TUNNEL_PURPOSE: &[u8] = b"mesh tunnel cookie 1";

/// The valid secrets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberKeys {
    /// The secret in use comes first.
    secrets: Vec<RelayKey>,
    /// Whether all members send cookies, so that nodes drop tunnel packets without one.
    cookies_demanded: bool,
}

/// Why a manager's keys are invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemberKeysError {
    /// There are too few or too many keys.
    #[error("{0} member keys came, 1 to {LIVE_MAX} are good")]
    Number(usize),
    /// A key has the wrong length.
    #[error("a member key is not of 32 bytes")]
    Length,
}

/// The key of tunnel cookies.
pub struct TunnelKey([u8; 32]);

impl MemberKeys {
    /// Parses the keys that a manager sent, the one in use first.
    ///
    /// # Errors
    /// There are too few or too many keys, or one has the wrong length.
    pub fn new(secrets: &[Vec<u8>], cookies_demanded: bool) -> Result<Self, MemberKeysError> {
        if !(1..=LIVE_MAX).contains(&secrets.len()) {
            return Err(MemberKeysError::Number(secrets.len()));
        }
        let secrets: Option<Vec<RelayKey>> =
            secrets.iter().map(|secret| RelayKey::from_bytes(secret)).collect();
        Ok(Self { secrets: secrets.ok_or(MemberKeysError::Length)?, cookies_demanded })
    }

    /// The keys with which relay preambles are signed and verified.
    pub fn relay_keys(&self) -> RelayKeys {
        RelayKeys::of(self.secrets.first().cloned(), self.secrets.get(1).cloned())
    }

    /// The keys of tunnel cookies, the one in use first; none before a manager has sent keys.
    pub fn tunnel_keys(&self) -> Vec<TunnelKey> {
        self.secrets.iter().map(|secret| TunnelKey(mac(secret.as_bytes(), TUNNEL_PURPOSE))).collect()
    }

    /// Whether tunnel packets without a cookie are dropped.
    pub fn demand_cookies(&self) -> bool {
        self.cookies_demanded && !self.secrets.is_empty()
    }
}

impl TunnelKey {
    /// The cookie of packets from node `from` to node `to`. Never 0.
    pub fn cookie(&self, from: [u8; 4], to: [u8; 4]) -> u32 {
        let [f0, f1, f2, f3] = from;
        let [t0, t1, t2, t3] = to;
        let [c0, c1, c2, c3, ..] = mac(&self.0, &[f0, f1, f2, f3, t0, t1, t2, t3]);
        u32::from_be_bytes([c0, c1, c2, c3]).max(1)
    }
}

fn mac(key: &[u8; 32], bytes: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 4] = [10, 77, 0, 11];
    const B: [u8; 4] = [10, 77, 0, 12];

    fn cookies(byte: u8) -> [u32; 2] {
        let keys = MemberKeys::new(&[vec![byte; 32]], true).expect("a key").tunnel_keys();
        [keys[0].cookie(A, B), keys[0].cookie(B, A)]
    }

    #[test]
    fn each_key_pair_and_direction_has_a_cookie_of_its_own() {
        let all = [cookies(1), cookies(2)].concat();
        for (at, cookie) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(cookie), "{all:x?}");
        }
        assert_eq!(cookies(1), cookies(1), "both ends work out the same");
    }

    #[test]
    fn nothing_is_demanded_without_a_key() {
        assert!(!MemberKeys::default().demand_cookies());
        assert!(MemberKeys::new(&[vec![1; 32]], true).expect("a key").demand_cookies());
        assert!(!MemberKeys::new(&[vec![1; 32]], false).expect("a key").demand_cookies());
    }

    #[test]
    fn other_numbers_and_lengths_are_refused() {
        assert_eq!(MemberKeys::new(&[], false), Err(MemberKeysError::Number(0)));
        assert_eq!(
            MemberKeys::new(&[vec![1; 32], vec![2; 32], vec![3; 32]], false),
            Err(MemberKeysError::Number(3))
        );
        assert_eq!(MemberKeys::new(&[vec![1; 31]], false), Err(MemberKeysError::Length));
    }
}
