//! What a new manager gets of its cluster, and the box in which it travels: the cluster's key, with
//! autolock the unlock key, etcd's CA, and the members of etcd.
//!
//! Invariants: the box opens only with the key that the new manager's process made for it and holds
//! in memory, and only for that manager's name; nothing of it is written before it is whole; with
//! autolock, the cluster's key is never written in clear.
//!
//! Left to others: to whom a box is given (`node_service`), and following autolock later
//! ([`crate::at_rest`]).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use mesh_etcd_pki::Issued;
use mesh_runtime::private_file;
use mesh_state::ids::ClusterId;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::managed_etcd::authority::{self, AuthorityError};
use crate::seal::key_file::KEY_FILE;
use crate::seal::unlock_key::UnlockKey;
use crate::seal::{KEY_BYTES, SealError, Sealer};

/// The length of a public key, bytes.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// The most bytes of a box.
pub const BOX_BYTES_MAX: usize = 64 << 10;
/// What the box's key is derived for.
const LABEL: &[u8] = b"mesh manager handover 1";

/// Why a new manager can't be given, or take, what it needs.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// The public key is no key.
    #[error("the public key of the new manager is invalid")]
    PublicKey,
    /// The box was made for another manager, or was changed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The content can't be encoded or parsed.
    #[error("read what the cluster gave this manager: is mesh-control of the same version on all managers?")]
    Content(#[source] serde_json::Error),
    /// The cluster's key, or its unlock key, has a wrong length.
    #[error("{name} has {found} bytes, not {KEY_BYTES}")]
    KeyLength {
        /// Which key it is.
        name: &'static str,
        /// How many bytes the cluster sent.
        found: usize,
    },
    /// This manager has no CA of etcd.
    #[error("{} holds no CA of etcd", .0.display())]
    NoAuthority(PathBuf),
    /// A file can't be written.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation that failed: make or write.
        operation: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The CA of etcd can't be read or written.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// What a new manager gets.
#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
pub struct Handover {
    /// The id of the cluster that the key is for.
    #[zeroize(skip)]
    pub cluster: ClusterId,
    /// The cluster's key, base64.
    key: String,
    /// The unlock key of a cluster with autolock, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unlock: Option<String>,
    /// The certificate of etcd's CA, PEM.
    etcd_ca: String,
    /// Its key, PEM: each manager renews its own member's certificates.
    etcd_ca_key: String,
    /// The members of etcd, the new one included: peer URLs by name.
    #[zeroize(skip)]
    pub members: BTreeMap<String, String>,
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover")
            .field("cluster", &self.cluster)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

impl Handover {
    /// What a manager with this key, this unlock key and etcd's CA in `pki` gives to a new one.
    /// Blocks.
    ///
    /// # Errors
    /// The CA can't be read.
    pub fn gather(
        cluster: ClusterId,
        sealer: &Sealer,
        unlock: Option<&UnlockKey>,
        pki: &Path,
        members: BTreeMap<String, String>,
    ) -> Result<Self, HandoverError> {
        let none = || HandoverError::NoAuthority(pki.to_owned());
        let Issued { certificate_pem, key_pem } = authority::read(pki, sealer)?.ok_or_else(none)?;
        Ok(Self {
            cluster,
            key: BASE64.encode(sealer.key().as_slice()),
            unlock: unlock.map(|unlock| BASE64.encode(unlock.bytes().as_slice())),
            etcd_ca: certificate_pem,
            etcd_ca_key: String::clone(&key_pem),
            members,
        })
    }

    /// The box for the manager `name` whose process made `public_key`.
    ///
    /// # Errors
    /// The key is invalid.
    pub fn seal(&self, public_key: &[u8], name: &str) -> Result<Vec<u8>, HandoverError> {
        let public: [u8; PUBLIC_KEY_BYTES] = public_key.try_into().map_err(|_| HandoverError::PublicKey)?;
        let ours = OfferKey::generate();
        let shared = ours.shared(&public, &ours.public(), &public)?;
        let content = Zeroizing::new(serde_json::to_vec(self).map_err(HandoverError::Content)?);
        let sealed = shared.seal_bytes(&purpose(name), &content)?;
        Ok([ours.public().as_slice(), &sealed].concat())
    }

    /// The unlock key of the cluster; `None` without autolock.
    ///
    /// # Errors
    /// It has a wrong length.
    pub fn unlock_key(&self) -> Result<Option<UnlockKey>, HandoverError> {
        let Some(encoded) = &self.unlock else { return Ok(None) };
        let bytes = key_bytes("the unlock key", encoded)?;
        Ok(UnlockKey::from_bytes(bytes.as_slice()))
    }

    /// Writes what the new manager needs: the key last, so that its presence shows that all is
    /// there. Blocks.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn store(&self, data_dir: &Path, pki: &Path) -> Result<(), HandoverError> {
        let sealer = Sealer::new(&key_bytes("the cluster's key", &self.key)?);
        let unlock = self.unlock_key()?;
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| HandoverError::File { operation, path, source }
        };
        private_file::create_private_dir(pki).map_err(failed("make", pki))?;
        let key_pem = Zeroizing::new(self.etcd_ca_key.clone());
        let ca = Issued { certificate_pem: self.etcd_ca.clone(), key_pem };
        authority::store(pki, &ca, &sealer)?;
        let cluster = data_dir.join("cluster-id");
        private_file::replace(&cluster, format!("{}\n", self.cluster).as_bytes())
            .map_err(failed("write", &cluster))?;
        sealer.store(&data_dir.join(KEY_FILE), unlock.as_ref())?;
        Ok(())
    }
}

/// The bytes of a key.
fn key_bytes(name: &'static str, encoded: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, HandoverError> {
    let bytes = BASE64.decode(encoded.as_bytes()).map(Zeroizing::new).unwrap_or_default();
    let wrong = |_| HandoverError::KeyLength { name, found: bytes.len() };
    <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map(Zeroizing::new).map_err(wrong)
}

fn purpose(name: &str) -> String {
    format!("handover to manager {name}")
}

/// The key to which a new manager has its box sealed. It is in memory only, and wiped when dropped.
pub struct OfferKey(StaticSecret);

impl OfferKey {
    /// A new key.
    pub fn generate() -> Self {
        let bytes = Zeroizing::new(rand::random::<[u8; PUBLIC_KEY_BYTES]>());
        Self(StaticSecret::from(*bytes))
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> [u8; PUBLIC_KEY_BYTES] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// Opens a box that was sealed to this key for the manager `name`.
    ///
    /// # Errors
    /// It was sealed to another key, for another manager, or was changed.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Handover, HandoverError> {
        let (theirs, content) =
            sealed.split_first_chunk::<PUBLIC_KEY_BYTES>().ok_or(HandoverError::PublicKey)?;
        let shared = self.shared(theirs, theirs, &self.public())?;
        let content = shared.open_bytes(&purpose(name), content)?;
        serde_json::from_slice(&content).map_err(HandoverError::Content)
    }

    /// The sealer of the secret that both keys' owners share, bound to both public keys.
    fn shared(
        &self,
        other: &[u8; PUBLIC_KEY_BYTES],
        sender: &[u8],
        receiver: &[u8],
    ) -> Result<Sealer, HandoverError> {
        let secret = self.0.diffie_hellman(&PublicKey::from(*other));
        // A point of small order would make a secret that anybody knows.
        if !secret.was_contributory() {
            return Err(HandoverError::PublicKey);
        }
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).map_err(|_| HandoverError::PublicKey)?;
        for part in [LABEL, sender, receiver] {
            mac.update(part);
        }
        Ok(Sealer::new(&Zeroizing::new(mac.finalize().into_bytes().into())))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn sealer() -> Sealer {
        Sealer::new(&Zeroizing::new([7; KEY_BYTES]))
    }

    fn ca(pki: &Path) -> String {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        authority::open(pki, &sealer(), now).unwrap().certificate_pem().to_owned()
    }

    fn handover(pki: &Path, unlock: Option<&UnlockKey>) -> Handover {
        ca(pki);
        let sealer = sealer();
        let members = BTreeMap::from([("a".to_owned(), "https://10.0.0.1:4803".to_owned())]);
        Handover::gather("c1".into(), &sealer, unlock, pki, members).unwrap()
    }

    #[test]
    fn a_box_opens_for_its_manager_alone() {
        let directory = tempfile::tempdir().unwrap();
        let unlock = UnlockKey::random();
        let given = handover(directory.path(), Some(&unlock));
        let offer = OfferKey::generate();
        let sealed = given.seal(&offer.public(), "b").unwrap();
        assert!(!sealed.windows(10).any(|part| part == &given.etcd_ca.as_bytes()[..10]), "in clear");
        let opened = offer.open("b", &sealed).unwrap();
        assert_eq!((&opened.cluster, &opened.members), (&given.cluster, &given.members));
        assert_eq!(opened.etcd_ca_key, given.etcd_ca_key);
        assert_eq!(opened.unlock_key().unwrap(), Some(unlock));
        assert!(offer.open("c", &sealed).is_err(), "another manager's name");
        assert!(OfferKey::generate().open("b", &sealed).is_err(), "another key");
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(offer.open("b", &changed).is_err(), "a changed box");
        assert!(offer.open("b", &sealed[..20]).is_err(), "a cut box");
        assert!(matches!(given.seal(&[0; 32], "b"), Err(HandoverError::PublicKey)), "a weak key");
        assert!(matches!(given.seal(&[9; 31], "b"), Err(HandoverError::PublicKey)), "a short key");
    }

    /// The contents of every file below `directory`.
    fn contents(directory: &Path) -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(
                |path| {
                    if path.is_dir() { contents(&path) } else { vec![std::fs::read(&path).unwrap()] }
                },
            )
            .collect()
    }

    #[test]
    fn what_was_given_is_stored_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let (old, unlock) = (tempfile::tempdir().unwrap(), UnlockKey::random());
        for lock in [None, Some(&unlock)] {
            let new = tempfile::tempdir().unwrap();
            let (key, pki) = (new.path().join("key"), new.path().join("etcd/pki"));
            handover(old.path(), lock).store(new.path(), &pki).unwrap();
            let stored = Sealer::load(&key, lock).unwrap().unwrap();
            assert_eq!(stored.key().as_slice(), [7; KEY_BYTES]);
            assert_eq!(std::fs::read_to_string(new.path().join("cluster-id")).unwrap(), "c1\n");
            for file in [key, pki.join("ca.key.sealed")] {
                let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "mode of {}", file.display());
            }
            assert_eq!(ca(&pki), ca(old.path()), "another CA");
            let shows = |secret: &[u8]| {
                contents(new.path()).iter().any(|file| file.windows(secret.len()).any(|part| part == secret))
            };
            assert!(!shows(b"PRIVATE KEY"), "a private key is on the disk in clear");
            assert_eq!(shows(&[7; KEY_BYTES]), lock.is_none(), "the cluster's key in clear, {lock:?}");
            assert!(!shows(unlock.bytes().as_slice()), "the unlock key is on the disk");
        }
    }

    #[test]
    fn a_box_without_or_with_half_an_unlock_key_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let given = handover(directory.path(), None);
        let mut content = serde_json::to_value(&given).unwrap();
        assert!(content.get("unlock").is_none(), "as managers of older versions send it: {content}");
        assert_eq!(given.unlock_key().unwrap(), None);
        content["unlock"] = "AAAA".into();
        let cut: Handover = serde_json::from_value(content).unwrap();
        let refused = cut.store(&directory.path().join("new"), &directory.path().join("new/pki"));
        assert!(matches!(refused, Err(HandoverError::KeyLength { found: 3, .. })), "{refused:?}");
        assert!(!directory.path().join("new").exists(), "something was written");
    }
}
