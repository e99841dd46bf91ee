//! The node's private key, in memory and in a file of the agent's data directory.

use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use boringtun::x25519::{PublicKey, StaticSecret};
use mesh_runtime::private_file;
use zeroize::Zeroizing;

/// Name of the file in the data directory.
pub(super) const FILE: &str = "encryption.key";
/// Length of a key, bytes.
const LEN: usize = 32;

/// A private key (X25519). Zeroed when dropped.
#[derive(Clone)]
pub(super) struct PrivateKey(StaticSecret);

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl PrivateKey {
    /// The key in the file (mode 0600); if there is none, a new one is made and kept there.
    ///
    /// # Errors
    /// The file can't be read or written, or has no key in it.
    pub(super) fn load_or_make(path: &Path) -> io::Result<Self> {
        if let Some(text) = private_file::read(path)?.map(Zeroizing::new) {
            let bytes = BASE64_STANDARD.decode(text.trim_ascii()).map(Zeroizing::new);
            let key = bytes.ok().and_then(|bytes| <[u8; LEN]>::try_from(bytes.as_slice()).ok());
            let unusable = || io::Error::other("it holds no key: delete the file, and a new key is made");
            return key.map(Zeroizing::new).map(|key| Self::of(&key)).ok_or_else(unusable);
        }
        let bytes = Zeroizing::new(rand::random::<[u8; LEN]>());
        let text = Zeroizing::new(BASE64_STANDARD.encode(*bytes));
        private_file::replace(path, text.as_bytes())?;
        Ok(Self::of(&bytes))
    }

    /// The key of these bytes.
    pub(super) fn of(bytes: &[u8; LEN]) -> Self {
        Self(StaticSecret::from(*bytes))
    }

    /// The key for a tunnel.
    pub(super) fn secret(&self) -> StaticSecret {
        self.0.clone()
    }

    /// The public key that belongs to it.
    pub(super) fn public(&self) -> [u8; LEN] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// The public key in Base64.
    pub(super) fn public_text(&self) -> String {
        BASE64_STANDARD.encode(self.public())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_the_agent_reads_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE);
        let first = PrivateKey::load_or_make(&path).expect("a key is made");
        let loaded = PrivateKey::load_or_make(&path).expect("the key is loaded");
        assert_eq!(first.public(), loaded.public(), "an agent that starts again has the same key");
        let mode = std::fs::metadata(&path).expect("the file").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let written = std::fs::read_to_string(&path).expect("text");
        assert!(!format!("{first:?}").contains(&written), "keys are not logged");
        std::fs::remove_file(&path).expect("the file is deleted");
        let next = PrivateKey::load_or_make(&path).expect("a key is made again");
        assert_ne!(first.public(), next.public(), "another key");
    }

    #[test]
    fn a_file_without_a_key_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE);
        for text in ["", "AAAA", "no key at all"] {
            std::fs::write(&path, text).expect("the file is written");
            let refused = PrivateKey::load_or_make(&path).expect_err(text);
            assert!(refused.to_string().contains("delete the file"), "{refused}");
        }
    }

    #[test]
    fn the_public_key_is_the_one_of_rfc_7748() {
        // Section 6.1, Alice.
        let private = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
            0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        assert_eq!(PrivateKey::of(&private).public_text(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
