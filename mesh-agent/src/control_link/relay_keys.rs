//! The keys that authenticate relayed connections between members: the one in force and the one before it.
//!
//! Invariant: a change of keys cuts nothing: the key before stays good for checking until the next change.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;

/// One key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct RelayKey([u8; KEY_LENGTH]);

impl RelayKey {
    /// The key of these bytes, if they are 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl fmt::Debug for RelayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayKey")
    }
}

/// The keys in use; none before a manager gave one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RelayKeys {
    current: Option<RelayKey>,
    previous: Option<RelayKey>,
}

impl RelayKeys {
    /// These keys after a manager named `key` as the one in force.
    #[must_use]
    pub fn rotated(&self, key: RelayKey) -> Self {
        if self.current.as_ref() == Some(&key) {
            return self.clone();
        }
        Self { previous: self.current.clone(), current: Some(key) }
    }

    /// A key in force, and another that is good for checking.
    pub const fn of(current: Option<RelayKey>, other: Option<RelayKey>) -> Self {
        Self { current, previous: other }
    }

    /// The good keys, the one in force first.
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
