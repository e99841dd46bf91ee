//! The keys that authenticate relayed connections between members: the current and the previous
//! one.
//!
//! Invariant: a rotation breaks no connection: the previous key stays valid for verification until
//! the next rotation.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Length of a key in bytes.
pub const KEY_LENGTH: usize = 32;

/// One key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct RelayKey([u8; KEY_LENGTH]);

impl RelayKey {
    /// Makes a key of these bytes, if they are 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The key as bytes, to sign with.
    pub fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl fmt::Debug for RelayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayKey")
    }
}

/// The valid keys; none before a manager has sent one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RelayKeys {
    current: Option<RelayKey>,
    previous: Option<RelayKey>,
}

impl RelayKeys {
    /// The keys after a manager made `key` the current one.
    #[must_use]
    pub fn rotated(&self, key: RelayKey) -> Self {
        if self.current.as_ref() == Some(&key) {
            return self.clone();
        }
        Self { previous: self.current.clone(), current: Some(key) }
    }

    /// A current key, and another one that is valid for verification.
    pub const fn of(current: Option<RelayKey>, other: Option<RelayKey>) -> Self {
        Self { current, previous: other }
    }

    /// The valid keys, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = &RelayKey> {
        self.current.iter().chain(&self.previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_before_stays_good_for_one_change() {
        let key = |byte| RelayKey::from_bytes(&[byte; KEY_LENGTH]).expect("a key");
        let good = |keys: &RelayKeys| keys.iter().map(|key| key.as_bytes()[0]).collect::<Vec<_>>();
        let keys = RelayKeys::default().rotated(key(1));
        assert_eq!(good(&keys), [1]);
        let keys = keys.rotated(key(2)).rotated(key(2));
        assert_eq!(good(&keys), [2, 1], "the same key again is no change");
        assert_eq!(good(&keys.rotated(key(3))), [3, 2]);
        assert_eq!(RelayKey::from_bytes(&[1; 31]), None, "a short key");
    }
}
