//! What a new manager gets of its cluster, and the box in which it travels: the cluster's key,
//! etcd's CA, and the members of etcd.
//!
//! Invariants: the box opens only with the key that the new manager's process made for it and holds
//! in memory, and only for that manager's name; nothing of it is written before it is whole.
//!
//! Left to others: to whom a box is given (`node_service`), and wrapping the key file at rest.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use mesh_etcd_pki::{CA_FILE, Issued, PkiError};
use mesh_runtime::private_file;
use mesh_state::ids::ClusterId;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{ZeroizeOnDrop, Zeroizing};

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
    /// The cluster's key has a wrong length.
    #[error("the cluster's key has {0} bytes, not {KEY_BYTES}")]
    KeyLength(usize),
    /// A file can't be read or written.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation that failed: read or write.
        operation: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The CA of etcd can't be written.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// What a new manager gets.
#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
pub struct Handover {
    /// The id of the cluster that the key is for.
    #[zeroize(skip)]
    pub cluster: ClusterId,
    /// The cluster's key, base64.
    key: String,
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
    /// What a manager with this key, and etcd's CA in `pki`, gives to a new one. Blocks.
    ///
    /// # Errors
    /// The CA can't be read.
    pub fn gather(
        cluster: ClusterId,
        sealer: &Sealer,
        pki: &Path,
        members: BTreeMap<String, String>,
    ) -> Result<Self, HandoverError> {
        let read = |extension: &str| {
            let path = pki.join(format!("{CA_FILE}.{extension}"));
            std::fs::read_to_string(&path).map_err(|source| HandoverError::File {
                operation: "read",
                path,
                source,
            })
        };
        Ok(Self {
            cluster,
            key: BASE64.encode(sealer.key().as_slice()),
            etcd_ca: read("pem")?,
            etcd_ca_key: read("key")?,
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

    /// Writes what the new manager needs: the key last, so that its presence shows that all is
    /// there. Blocks.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn store(&self, data_dir: &Path, pki: &Path) -> Result<(), HandoverError> {
        let key = BASE64.decode(self.key.as_bytes()).map(Zeroizing::new).unwrap_or_default();
        if key.len() != KEY_BYTES {
            return Err(HandoverError::KeyLength(key.len()));
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| HandoverError::File { operation: "write", path, source }
        };
        private_file::create_private_dir(pki).map_err(failed(pki))?;
        let key_pem = Zeroizing::new(self.etcd_ca_key.clone());
        let ca = Issued { certificate_pem: self.etcd_ca.clone(), key_pem };
        ca.write(pki, CA_FILE)?;
        let cluster = data_dir.join("cluster-id");
        private_file::replace(&cluster, format!("{}\n", self.cluster).as_bytes())
            .map_err(failed(&cluster))?;
        let path = data_dir.join("key");
        private_file::replace(&path, &key).map_err(failed(&path))
    }
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
    use mesh_etcd_pki::EtcdAuthority;

    use super::*;

    fn handover(pki: &Path) -> Handover {
        EtcdAuthority::open(pki, DateTime::from_timestamp(1_800_000_000, 0).unwrap()).unwrap();
        let sealer = Sealer::new(&Zeroizing::new([7; KEY_BYTES]));
        let members = BTreeMap::from([("a".to_owned(), "https://10.0.0.1:4803".to_owned())]);
        Handover::gather("c1".into(), &sealer, pki, members).unwrap()
    }

    #[test]
    fn a_box_opens_for_its_manager_alone() {
        let directory = tempfile::tempdir().unwrap();
        let given = handover(directory.path());
        let offer = OfferKey::generate();
        let sealed = given.seal(&offer.public(), "b").unwrap();
        assert!(!sealed.windows(10).any(|part| part == &given.etcd_ca.as_bytes()[..10]), "in clear");
        let opened = offer.open("b", &sealed).unwrap();
        assert_eq!((&opened.cluster, &opened.members), (&given.cluster, &given.members));
        assert_eq!(opened.etcd_ca_key, given.etcd_ca_key);
        assert!(offer.open("c", &sealed).is_err(), "another manager's name");
        assert!(OfferKey::generate().open("b", &sealed).is_err(), "another key");
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(offer.open("b", &changed).is_err(), "a changed box");
        assert!(offer.open("b", &sealed[..20]).is_err(), "a cut box");
        assert!(matches!(given.seal(&[0; 32], "b"), Err(HandoverError::PublicKey)), "a weak key");
        assert!(matches!(given.seal(&[9; 31], "b"), Err(HandoverError::PublicKey)), "a short key");
    }

    #[test]
    fn what_was_given_is_stored_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pki = new.path().join("etcd/pki");
        handover(old.path()).store(new.path(), &pki).unwrap();
        assert_eq!(std::fs::read(new.path().join("key")).unwrap(), [7; KEY_BYTES]);
        assert_eq!(std::fs::read_to_string(new.path().join("cluster-id")).unwrap(), "c1\n");
        for file in [new.path().join("key"), pki.join("ca.key")] {
            let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "mode of {}", file.display());
        }
        let found = EtcdAuthority::open(&pki, DateTime::from_timestamp(1_800_000_000, 0).unwrap()).unwrap();
        assert_eq!(found.certificate_pem(), std::fs::read_to_string(old.path().join("ca.pem")).unwrap());
    }
}
