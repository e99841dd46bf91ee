//! The node's identity: its key, its certificate and the cluster's CA, in one private file.
//!
//! Invariants: the key never leaves the node; the file holds all parts or does not exist.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::parse_x509_pem;
use x509_parser::time::ASN1Time;

use mesh_runtime::private_file;

const FILE: &str = "identity.json";

/// The key and certificate that prove this node's membership.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The node's id, which is also the certificate's common name.
    pub node_id: NodeId,
    /// The private key, PEM.
    pub key_pem: String,
    /// The node's certificate as a member, PEM.
    pub certificate_pem: String,
    /// The CAs that managers' servers may have, PEM: the cluster's, and others while it is
    /// replaced.
    pub ca_pem: String,
}

/// Why an identity could not be read or stored.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file could not be read or written.
    #[error("access {}", path.display())]
    File {
        /// The file of the node's identity.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The file holds no valid identity.
    #[error("{} is damaged: remove it, and the node joins again as a new one", path.display())]
    Damaged {
        /// The file of the node's identity.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// The certificate can't be parsed.
    #[error(
        "the node's certificate can't be read: remove {FILE} from the data directory, and the node joins again as a new one"
    )]
    Certificate,
}

impl Identity {
    /// Loads the identity in `data_dir`, if the node has joined.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_dir.join(FILE);
        let contents =
            private_file::read(&path).map_err(|source| IdentityError::File { path: path.clone(), source })?;
        contents
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(|source| IdentityError::Damaged { path, source })
    }

    /// Writes the identity to `data_dir`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn store(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE);
        serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|bytes| private_file::replace(&path, &bytes))
            .map_err(|source| IdentityError::File { path, source })
    }

    /// Removes the identity from `data_dir`, if there is one.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn remove(data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE);
        private_file::remove(&path).map_err(|source| IdentityError::File { path, source })
    }

    /// The role in the certificate: `worker` or `manager`.
    ///
    /// # Errors
    /// The certificate can't be parsed.
    pub fn role(&self) -> Result<String, IdentityError> {
        self.read(|certificate| {
            let unit = certificate.subject().iter_organizational_unit().next()?.as_str().ok()?;
            Some(unit.trim_start_matches("mesh-").to_owned())
        })
    }

    /// The times between which the certificate is valid.
    ///
    /// # Errors
    /// The certificate can't be parsed.
    pub fn validity(&self) -> Result<(Timestamp, Timestamp), IdentityError> {
        self.read(|certificate| {
            let moment = |time: ASN1Time| Timestamp::from_timestamp(time.timestamp(), 0);
            Some((moment(certificate.validity().not_before)?, moment(certificate.validity().not_after)?))
        })
    }

    /// Whether the certificate names this node and the public key (DER).
    ///
    /// # Errors
    /// The certificate can't be parsed.
    pub fn is_for(&self, public_key: &[u8]) -> Result<bool, IdentityError> {
        self.read(|certificate| {
            let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
            Some(name == self.node_id.as_str() && certificate.public_key().raw == public_key)
        })
    }

    fn read<T>(&self, part: impl FnOnce(&X509Certificate<'_>) -> Option<T>) -> Result<T, IdentityError> {
        let (_, pem) =
            parse_x509_pem(self.certificate_pem.as_bytes()).map_err(|_| IdentityError::Certificate)?;
        let certificate = pem.parse_x509().map_err(|_| IdentityError::Certificate)?;
        part(&certificate).ok_or(IdentityError::Certificate)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData as _};

    use super::*;

    fn identity() -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "mesh-manager");
        Identity {
            node_id: NodeId::from("n1"),
            key_pem: key.serialize_pem(),
            certificate_pem: params.self_signed(&key).expect("a certificate").pem(),
            ca_pem: String::new(),
        }
    }

    #[test]
    fn an_identity_survives_on_disk() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(Identity::load(directory.path()).expect("no file is no error"), None);
        let identity = identity();
        identity.store(directory.path()).expect("it is stored");
        assert_eq!(Identity::load(directory.path()).expect("it is read"), Some(identity));
        std::fs::write(directory.path().join(FILE), "{").expect("the file is spoilt");
        let error = Identity::load(directory.path()).expect_err("a damaged file is an error");
        assert!(error.to_string().contains("remove it"), "expected the next step, saw: {error}");
    }

    #[test]
    fn a_certificate_is_for_one_node_and_one_key() {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, "n1");
        let certificate_pem = params.self_signed(&key).expect("a certificate").pem();
        let identity = Identity { certificate_pem, ..identity() };
        let (since, until) = identity.validity().expect("a validity");
        assert!(since < until, "a certificate from {since} until {until}");
        assert!(identity.is_for(&key.subject_public_key_info()).expect("read"), "its own key");
        let other = KeyPair::generate().expect("another key");
        assert!(!identity.is_for(&other.subject_public_key_info()).expect("read"), "another key");
        let stranger = Identity { node_id: NodeId::from("n2"), ..identity };
        assert!(!stranger.is_for(&key.subject_public_key_info()).expect("read"), "another node");
    }

    #[test]
    fn the_role_comes_from_the_certificate_and_the_key_is_not_shown() {
        let identity = identity();
        assert_eq!(identity.role().expect("a role"), "manager");
        assert!(!format!("{identity:?}").contains("PRIVATE KEY"), "the key shows in Debug");
    }
}
