//! The certificates of etcd's members and their clients.
//!
//! Purpose: `mesh etcd-certificates` makes them for an operator; the lab and the tests make theirs
//! with the same code. etcd needs a CA of its own, because the cluster's CA is stored in etcd.
//!
//! Layout of a directory of certificates: `ca.pem` and `ca.key`; `MEMBER.pem` and `MEMBER.key` for
//! each member of etcd, which it presents to clients and to the other members; `client.pem` and
//! `client.key` for mesh-control and etcdctl. Keys have mode 0600.
//!
//! Invariants: P-256 throughout; only members' certificates carry [`MEMBER_NAME`], which etcd
//! demands of its peers (`--peer-cert-allowed-cn`), so that a client's certificate opens no peer
//! port.
//!
//! Left to others: bringing the files to the managers. Only the operator needs `ca.key`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Datelike as _, Days, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use thiserror::Error;
use zeroize::Zeroizing;

/// The common name of every member's certificate.
pub const MEMBER_NAME: &str = "mesh-etcd";
/// The common name of the clients' certificate: the user in etcd, if etcd's authentication is on.
pub const CLIENT_NAME: &str = "mesh-control";
/// The file name, without extension, of the clients' certificate and key.
pub const CLIENT_FILE: &str = "client";
/// The file name, without extension, of the CA's certificate and key.
pub const CA_FILE: &str = "ca";

/// The validity of the CA, in days.
const CA_DAYS: u64 = 20 * 365;
/// Certificates are valid from a day earlier, for machines whose clocks are behind.
const SKEW_DAYS: u64 = 1;

/// Why a certificate could not be made or stored.
#[derive(Debug, Error)]
pub enum PkiError {
    /// The CA can't be made, or its files are invalid.
    #[error("{operation} the CA of etcd")]
    Authority {
        /// The operation that failed: create or load.
        operation: &'static str,
        /// The error of the call that failed.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate can't be signed.
    #[error("sign a certificate for {name}")]
    Sign {
        /// The subject of the certificate.
        name: String,
        /// The error of the call that failed.
        #[source]
        source: rcgen::Error,
    },
    /// A file can't be read or written.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation that failed: read or write.
        operation: &'static str,
        /// The file that can't be read or written.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: std::io::Error,
    },
    /// The CA's certificate exists, but its key doesn't.
    #[error(
        "{} exists without ca.key beside it: bring the CA's key there, or name an empty directory to make a new CA",
        certificate.display()
    )]
    NoKey {
        /// The path of the CA's certificate.
        certificate: PathBuf,
    },
}

/// A certificate and its key, PEM.
pub struct Issued {
    /// The certificate in PEM, as a server or client shows it.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: Zeroizing<String>,
}

/// A CA that signs for one etcd cluster.
pub struct EtcdAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl EtcdAuthority {
    /// Makes a CA.
    ///
    /// # Errors
    /// [`PkiError::Authority`].
    pub fn create(now: DateTime<Utc>) -> Result<(Self, Issued), PkiError> {
        let failed = |source| PkiError::Authority { operation: "create", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = params("mesh etcd CA", now, CA_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        let key_pem = Zeroizing::new(key.serialize_pem());
        let authority = Self::load(&certificate_pem, &key_pem)?;
        Ok((authority, Issued { certificate_pem, key_pem }))
    }

    /// Loads the CA from its certificate and key.
    ///
    /// # Errors
    /// [`PkiError::Authority`] if either can't be parsed.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let failed = |source| PkiError::Authority { operation: "load", source };
        let key = KeyPair::from_pem(key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(failed)?;
        Ok(Self { issuer, certificate_pem: certificate_pem.to_owned() })
    }

    /// Loads the CA in `directory`, or makes one there if there is none.
    ///
    /// # Errors
    /// [`PkiError`]; [`PkiError::NoKey`] if the CA's key is elsewhere.
    pub fn open(directory: &Path, now: DateTime<Utc>) -> Result<Self, PkiError> {
        let certificate = directory.join(format!("{CA_FILE}.pem"));
        let Some(certificate_pem) = read(&certificate)? else {
            let (authority, issued) = Self::create(now)?;
            issued.write(directory, CA_FILE)?;
            return Ok(authority);
        };
        let key = read(&directory.join(format!("{CA_FILE}.key")))?;
        Self::load(&certificate_pem, &key.ok_or(PkiError::NoKey { certificate })?)
    }

    /// The CA's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate for a member of etcd that clients and peers reach at `names`: host
    /// names and IP addresses. Loopback is always included. It serves for both ends of a
    /// connection, as members are each other's clients.
    ///
    /// # Errors
    /// [`PkiError::Sign`], also for a name that no certificate can hold.
    pub fn issue_member(&self, names: &[String], days: u64, now: DateTime<Utc>) -> Result<Issued, PkiError> {
        let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut subjects = Vec::new();
        for name in names.iter().chain(&loopback) {
            let failed = |source| PkiError::Sign { name: name.clone(), source };
            subjects.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.clone().try_into().map_err(failed)?),
            });
        }
        let both = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(MEMBER_NAME, subjects, both, days, now)
    }

    /// Issues a certificate for clients of etcd: mesh-control and etcdctl.
    ///
    /// # Errors
    /// [`PkiError::Sign`].
    pub fn issue_client(&self, days: u64, now: DateTime<Utc>) -> Result<Issued, PkiError> {
        self.issue(CLIENT_NAME, Vec::new(), vec![ExtendedKeyUsagePurpose::ClientAuth], days, now)
    }

    fn issue(
        &self,
        name: &str,
        subjects: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        days: u64,
        now: DateTime<Utc>,
    ) -> Result<Issued, PkiError> {
        let failed = |source| PkiError::Sign { name: name.to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = params(name, now, days);
        params.subject_alt_names = subjects;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        let certificate_pem = params.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(Issued { certificate_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
    }
}

impl Issued {
    /// Writes `NAME.pem`, and `NAME.key` readable by its owner alone, each as a whole.
    ///
    /// # Errors
    /// [`PkiError::File`].
    pub fn write(&self, directory: &Path, name: &str) -> Result<(), PkiError> {
        write(&directory.join(format!("{name}.key")), 0o600, &self.key_pem)?;
        write(&directory.join(format!("{name}.pem")), 0o644, &self.certificate_pem)
    }
}

fn params(name: &str, now: DateTime<Utc>, days: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let midnight = |moment: DateTime<Utc>| {
        let byte = |number: u32| u8::try_from(number).unwrap_or(1);
        rcgen::date_time_ymd(moment.year(), byte(moment.month()), byte(moment.day()))
    };
    params.not_before = midnight(now - Days::new(SKEW_DAYS));
    params.not_after = midnight(now + Days::new(days));
    params
}

/// The contents of a file; `None` if it doesn't exist.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { operation: "read", path: path.to_owned(), source }),
    }
}

/// Writes a file under another name and renames it, so that no reader sees half of it and it never
/// has another mode.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { operation: "write", path: path.to_owned(), source };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    let directory = path.parent().ok_or_else(|| failed(std::io::Error::other("a file needs a directory")))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use x509_parser::pem::parse_x509_pem;
    use x509_parser::prelude::GeneralName;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    #[test]
    fn a_member_may_be_either_end_and_a_client_only_a_client() {
        let (authority, _) = EtcdAuthority::create(now()).unwrap();
        let names = ["etcd-1.example".to_owned(), "10.77.0.11".to_owned()];
        let member = authority.issue_member(&names, 30, now()).unwrap();
        let (_, pem) = parse_x509_pem(member.certificate_pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let (_, ca) = parse_x509_pem(authority.certificate_pem().as_bytes()).unwrap();
        let ca = ca.parse_x509().unwrap();
        assert!(certificate.verify_signature(Some(ca.public_key())).is_ok(), "not signed by the CA");
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth, "a member is a server and its peers' client");
        let subjects = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
        for expected in [GeneralName::DNSName("etcd-1.example"), GeneralName::IPAddress(&[10, 77, 0, 11])] {
            assert!(subjects.contains(&expected), "expected {expected:?} in {subjects:?}");
        }
        let days = (certificate.validity().not_after.timestamp() - now().timestamp()) / 86_400;
        assert!((29..=30).contains(&days), "expected 30 days, saw {days}");

        let client = authority.issue_client(30, now()).unwrap();
        let (_, pem) = parse_x509_pem(client.certificate_pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth, "a client's certificate serves no member");
        let name = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap();
        assert_ne!(name, MEMBER_NAME, "a client's certificate opens a peer port");
    }

    #[test]
    fn a_directory_keeps_its_authority_and_hides_its_keys() {
        let directory = tempfile::tempdir().unwrap();
        let made = EtcdAuthority::open(directory.path(), now()).unwrap();
        let found = EtcdAuthority::open(directory.path(), now()).unwrap();
        assert_eq!(found.certificate_pem(), made.certificate_pem(), "a second CA was made");
        let client = made.issue_client(1, now()).unwrap();
        client.write(directory.path(), CLIENT_FILE).unwrap();
        client.write(directory.path(), CLIENT_FILE).unwrap();
        for file in ["ca.key", "client.key"] {
            let permissions = std::fs::metadata(directory.path().join(file)).unwrap().permissions();
            assert_eq!(permissions.mode() & 0o777, 0o600, "mode of {file}");
        }
        std::fs::remove_file(directory.path().join("ca.key")).unwrap();
        let refused = EtcdAuthority::open(directory.path(), now()).map(|_| ()).unwrap_err();
        assert!(matches!(refused, PkiError::NoKey { .. }), "a CA without its key: {refused:?}");
    }

    #[test]
    fn a_name_that_no_certificate_can_hold_is_refused() {
        let (authority, _) = EtcdAuthority::create(now()).unwrap();
        let refused = authority.issue_member(&["ümlaut".to_owned()], 1, now()).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("ümlaut"), "the error doesn't name the name: {refused}");
    }
}
