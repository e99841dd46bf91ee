//! The unlock key of a cluster with autolock: `SWMKEY-1-` and 32 bytes in base64 without padding,
//! as operators write it down.
//!
//! Invariants: its bytes are wiped when dropped, compared in constant time, and never shown by
//! `Debug`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use rand::RngCore as _;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

use super::KEY_BYTES;

const PREFIX: &str = "SWMKEY-1-";

/// The key that a restarted manager of a cluster with autolock waits for.
#[derive(Clone)]
pub struct UnlockKey(Zeroizing<[u8; KEY_BYTES]>);

/// The text is no unlock key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("invalid key string")]
pub struct UnlockKeyError;

impl UnlockKey {
    /// A new key.
    pub fn random() -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::rng().fill_bytes(bytes.as_mut_slice());
        Self(bytes)
    }

    /// The key of these bytes, if they are 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    /// The key as bytes, to seal it or to seal with it.
    pub fn bytes(&self) -> &Zeroizing<[u8; KEY_BYTES]> {
        &self.0
    }

    /// The key as `docker swarm unlock-key` shows it.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", Zeroizing::new(BASE64.encode(self.0.as_slice())).as_str()))
    }
}

impl FromStr for UnlockKey {
    type Err = UnlockKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(UnlockKeyError)?;
        let bytes = Zeroizing::new(BASE64.decode(encoded).map_err(|_| UnlockKeyError)?);
        Self::from_bytes(&bytes).ok_or(UnlockKeyError)
    }
}

impl PartialEq for UnlockKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for UnlockKey {}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_shown() {
        let key = UnlockKey::random();
        let text = key.text();
        assert!(text.starts_with("SWMKEY-1-") && text.len() == 9 + 43, "{} characters", text.len());
        assert_eq!(text.parse::<UnlockKey>(), Ok(key.clone()));
        assert_eq!(format!(" {}\n", *text).parse::<UnlockKey>(), Ok(key.clone()), "pasted with white space");
        assert_ne!(UnlockKey::random(), key);
        assert_eq!(format!("{key:?}"), "UnlockKey", "the key shows in Debug");
        for bad in ["", "SWMKEY-1-", "SWMKEY-1-AAAA", &text[1..], &format!("{}=", *text)] {
            assert_eq!(bad.parse::<UnlockKey>(), Err(UnlockKeyError), "{bad:?} was taken");
        }
    }
}
