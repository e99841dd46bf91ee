//! Seals (encrypts) secrets that are stored in etcd: XChaCha20-Poly1305 under a key file that is
//! never in etcd.
//!
//! Invariants: every sealing has a fresh random nonce (192 bits, so collisions don't happen); a
//! sealed value opens only for the purpose it was sealed for; decrypted bytes are wiped when
//! dropped.
//!
//! Left to others: what is sealed, and carrying the key to further managers
//! ([`crate::handover`]).

pub mod key_file;
pub mod unlock_key;

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac as _};
use mesh_state::cluster::Sealed;
use rand::RngCore as _;
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

/// The length of the key, bytes.
pub const KEY_BYTES: usize = 32;
/// The length of XChaCha20's nonce, which precedes the ciphertext, bytes.
const NONCE_BYTES: usize = 24;

/// Why sealing, opening or the key file failed.
#[derive(Debug, Error)]
pub enum SealError {
    /// The key file can't be read or written.
    #[error("{operation} the key file {}", path.display())]
    KeyFile {
        /// The operation that failed: read, create or replace.
        operation: &'static str,
        /// The key file of the managers.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: std::io::Error,
    },
    /// The key file has the wrong length.
    #[error("the key file {} holds {found} bytes, not {KEY_BYTES}: copy it again from another manager", path.display())]
    KeyLength {
        /// The key file of the managers.
        path: PathBuf,
        /// The length of the file in bytes.
        found: usize,
    },
    /// The key file is wrapped, and no unlock key, or another one, was given.
    #[error("the key file {} is wrapped with another unlock key", path.display())]
    Locked {
        /// The key file of the managers.
        path: PathBuf,
    },
    /// The bytes are too long to be sealed.
    #[error("seal {purpose}")]
    Seal {
        /// What the value was to be sealed for.
        purpose: String,
    },
    /// The sealed value was made with another key, for another purpose, or was changed.
    #[error(
        "open {purpose}: sealed with another key; the key file must be the one of the cluster's first manager"
    )]
    Open {
        /// What the value was opened for.
        purpose: String,
    },
}

/// Seals and opens with the cluster's key.
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    key: Zeroizing<[u8; KEY_BYTES]>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// A sealer with this key.
    pub fn new(key: &Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self { cipher: XChaCha20Poly1305::new(&Key::from(**key)), key: key.clone() }
    }

    /// The key, for a further manager.
    pub fn key(&self) -> &Zeroizing<[u8; KEY_BYTES]> {
        &self.key
    }

    /// Seals `plaintext`; it opens for the same `purpose` only.
    ///
    /// # Errors
    /// [`SealError::Seal`] for more bytes than the cipher takes (256 GiB).
    pub fn seal(&self, purpose: &str, plaintext: &[u8]) -> Result<Sealed, SealError> {
        Ok(Sealed(BASE64.encode(self.seal_bytes(purpose, plaintext)?)))
    }

    /// Opens what [`Sealer::seal`] sealed for the same `purpose`.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open(&self, purpose: &str, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let bytes = BASE64.decode(&sealed.0).map_err(|_| SealError::Open { purpose: purpose.to_owned() })?;
        self.open_bytes(purpose, &bytes)
    }

    /// As [`Sealer::seal`], in bytes: the nonce, then ciphertext and tag.
    ///
    /// # Errors
    /// [`SealError::Seal`].
    pub fn seal_bytes(&self, purpose: &str, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload { msg: plaintext, aad: purpose.as_bytes() };
        let ciphertext = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| SealError::Seal { purpose: purpose.to_owned() })?;
        Ok([nonce.as_slice(), &ciphertext].concat())
    }

    /// Derives the secret of `purpose` and `salt`: HMAC-SHA256 under the cluster's key.
    pub fn derive(&self, purpose: &str, salt: &str) -> Zeroizing<Vec<u8>> {
        let mut block = Zeroizing::new([0; 64]);
        block[..KEY_BYTES].copy_from_slice(self.key.as_slice());
        let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&(*block).into());
        mac.update(purpose.as_bytes());
        // No purpose contains a zero byte, so the end of the purpose and the start of the salt are
        // unambiguous.
        mac.update(&[0]);
        mac.update(salt.as_bytes());
        Zeroizing::new(mac.finalize().into_bytes().to_vec())
    }

    /// Opens what [`Sealer::seal_bytes`] sealed for the same `purpose`.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open_bytes(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let refused = || SealError::Open { purpose: purpose.to_owned() };
        let (nonce, ciphertext) = sealed.split_at_checked(NONCE_BYTES).ok_or_else(refused)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| refused())?;
        let payload = Payload { msg: ciphertext, aad: purpose.as_bytes() };
        self.cipher.decrypt(&nonce, payload).map(Zeroizing::new).map_err(|_| refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(fill: u8) -> Sealer {
        Sealer::new(&Zeroizing::new([fill; KEY_BYTES]))
    }

    #[test]
    fn what_was_sealed_opens_with_its_key_for_its_purpose() {
        let sealed = sealer(1).seal("token", b"abc").unwrap();
        assert_eq!(sealer(1).open("token", &sealed).unwrap().as_slice(), b"abc");
        assert!(matches!(sealer(2).open("token", &sealed), Err(SealError::Open { .. })), "another key");
        assert!(matches!(sealer(1).open("ca", &sealed), Err(SealError::Open { .. })), "another purpose");
        assert_ne!(sealer(1).seal("token", b"abc").unwrap(), sealed, "each sealing has its own nonce");
    }

    #[test]
    fn each_purpose_and_salt_has_a_secret_of_its_own() {
        let derived = sealer(1).derive("relay", "abc");
        assert_eq!(derived.len(), 32);
        assert_eq!(sealer(1).derive("relay", "abc"), derived, "every manager derives the same");
        for other in [
            sealer(1).derive("relay", "abd"),
            sealer(1).derive("rela", "yabc"),
            sealer(2).derive("relay", "abc"),
        ] {
            assert_ne!(other, derived);
        }
    }

    #[test]
    fn a_changed_or_cut_value_does_not_open() {
        let sealed = sealer(1).seal("token", b"abc").unwrap();
        let mut bytes = BASE64.decode(&sealed.0).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        for bad in [BASE64.encode(&bytes), BASE64.encode(&bytes[..10]), "§".to_owned()] {
            let opened = sealer(1).open("token", &Sealed(bad.clone()));
            assert!(matches!(opened, Err(SealError::Open { .. })), "{bad} was opened");
        }
    }
}
