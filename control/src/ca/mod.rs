//! The cluster's certificate authority: issues the manager's server certificate and the members'
//! certificates.
//!
//! Invariants: P-256 throughout; the CA's key is decrypted in memory only; a member's certificate
//! carries the identity that the cluster gives it (CN = node id, OU = role), whatever its request
//! asked for; a node's certificate and a remote client's are told apart by their OU.
//!
//! Left to others: who may join ([`token`], node service), when certificates are renewed
//! ([`mesh_state::renewal`]).

pub mod client;
pub mod expired;
pub mod root;
pub mod token;

use std::net::IpAddr;
use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::cluster::node_cert_expiry_ns;
use mesh_state::ids::{ClusterId, NodeId};
use mesh_state::node::NodeRole;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// The name in every manager's server certificate.
pub const SERVER_NAME: &str = "mesh-manager";
/// The validity of the CA's certificate.
const CA_LIFE: Duration = Duration::from_hours(20 * 365 * 24);
/// The validity of a member's certificate, unless the cluster sets another one.
pub const MEMBER_LIFE: Duration = Duration::from_nanos(node_cert_expiry_ns());
/// The shortest validity that a cluster can set, as in Swarm.
pub const MEMBER_LIFE_MIN: Duration = Duration::from_hours(1);
/// The shortest validity that tests can set.
pub const LIFE_MIN_OF_TESTS: Duration = Duration::from_mins(1);
/// How far a certificate's start is set back, for members whose clocks are behind …
const SKEW: Duration = Duration::from_hours(24);
/// … but by no more than this part of its validity, so that a short one isn't due for renewal at
/// once.
const SKEW_PART: u32 = 20;

/// Why a certificate could not be made or parsed.
#[derive(Debug, Error)]
pub enum CaError {
    /// The CA itself could not be made or loaded.
    #[error("{operation} the cluster's CA")]
    Authority {
        /// The operation that failed: create or load.
        operation: &'static str,
        /// The error of the call that failed.
        #[source]
        source: rcgen::Error,
    },
    /// The CA's stored certificate can't be parsed.
    #[error("read the cluster's CA certificate")]
    Certificate(#[source] rustls_pki_types::pem::Error),
    /// The certificate request can't be parsed.
    #[error("read the certificate request: it must be a PKCS#10 request in PEM with a P-256 key")]
    Request(#[source] rcgen::Error),
    /// A certificate can't be signed.
    #[error("sign a certificate for {name}")]
    Sign {
        /// The subject of the certificate.
        name: String,
        /// The error of the call that failed.
        #[source]
        source: rcgen::Error,
    },
}

/// The CA, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.digest())
    }
}

/// A new CA, as it is stored.
pub struct NewAuthority {
    /// The new CA's certificate in PEM.
    pub certificate_pem: String,
    /// Its private key, to be sealed.
    pub key_pem: Zeroizing<String>,
}

/// A certificate with its chain, and its key.
pub struct ServerIdentity {
    /// The leaf, then the CA.
    pub chain_pem: String,
    /// The leaf's private key.
    pub key_pem: Zeroizing<String>,
    /// When the leaf's validity begins.
    pub since: Timestamp,
    /// When the leaf expires.
    pub until: Timestamp,
}

/// Makes a cluster's CA.
///
/// # Errors
/// [`CaError::Authority`].
pub fn create_authority(cluster: &ClusterId, now: Timestamp) -> Result<NewAuthority, CaError> {
    let failed = |source| CaError::Authority { operation: "create", source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = params(&format!("mesh CA {cluster}"), "mesh-ca", now, CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(NewAuthority { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) })
}

impl Authority {
    /// Loads the CA from its stored certificate and decrypted key.
    ///
    /// # Errors
    /// [`CaError::Authority`] and [`CaError::Certificate`] if either can't be parsed.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let failed = |source| CaError::Authority { operation: "load", source };
        let key = KeyPair::from_pem(key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(failed)?;
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(CaError::Certificate)?;
        Ok(Self { issuer, certificate_pem: certificate_pem.to_owned(), certificate })
    }

    /// The CA's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The SHA-256 of the CA's certificate, as join tokens carry it.
    pub fn digest(&self) -> String {
        token::certificate_digest(&self.certificate)
    }

    /// Issues a server certificate with a new key for the manager at `address`. The key is in
    /// memory only.
    ///
    /// # Errors
    /// [`CaError::Sign`].
    pub fn issue_server(
        &self,
        address: IpAddr,
        life: Duration,
        now: Timestamp,
    ) -> Result<ServerIdentity, CaError> {
        self.issue_server_for(&[address.to_string()], life, now)
    }

    /// The same for a server that clients reach by each of `hosts`: addresses and host names.
    ///
    /// # Errors
    /// [`CaError::Sign`], also for a host that no certificate can name.
    pub fn issue_server_for(
        &self,
        hosts: &[String],
        life: Duration,
        now: Timestamp,
    ) -> Result<ServerIdentity, CaError> {
        let failed = |source| CaError::Sign { name: SERVER_NAME.to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = params(SERVER_NAME, SERVER_NAME, now, life);
        let named = |host: &str| match host.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => host.try_into().map(SanType::DnsName),
        };
        let hosts = std::iter::once(SERVER_NAME).chain(hosts.iter().map(String::as_str));
        params.subject_alt_names = hosts.map(named).collect::<Result<_, _>>().map_err(failed)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let chain_pem = format!("{}{}", leaf.pem(), self.certificate_pem);
        let (since, until) = validity(now, life);
        Ok(ServerIdentity { chain_pem, key_pem: Zeroizing::new(key.serialize_pem()), since, until })
    }

    /// The CA's certificate, parsed.
    fn parsed(&self) -> Option<X509Certificate<'_>> {
        X509Certificate::from_der(&self.certificate).ok().map(|(_, certificate)| certificate)
    }

    /// When the CA expires.
    pub fn until(&self) -> Option<Timestamp> {
        Timestamp::from_timestamp(self.parsed()?.validity().not_after.timestamp(), 0)
    }

    /// Issues a member's certificate, PEM, for the key in its request. Nothing else of the request
    /// is used.
    ///
    /// # Errors
    /// [`CaError::Request`] if the request can't be parsed, [`CaError::Sign`].
    pub fn sign_member(
        &self,
        csr_pem: &str,
        node: &NodeId,
        role: NodeRole,
        life: Duration,
        now: Timestamp,
    ) -> Result<String, CaError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CaError::Request)?;
        let mut params = params(node.as_str(), organizational_unit(role), now, life);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|source| CaError::Sign { name: node.to_string(), source })?;
        Ok(signed.pem())
    }
}

/// The name of a role in certificates.
fn organizational_unit(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "mesh-worker",
        NodeRole::Manager => "mesh-manager",
    }
}

/// The start and the end of the validity of a certificate made `now`, in whole seconds as
/// certificates have them.
fn validity(now: Timestamp, life: Duration) -> (Timestamp, Timestamp) {
    let since = now - SKEW.min(life / SKEW_PART);
    let whole = |moment: Timestamp| Timestamp::from_timestamp(moment.timestamp(), 0).unwrap_or(moment);
    (whole(since), whole(now + life))
}

fn params(name: &str, unit: &str, now: Timestamp, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject.push(DnType::OrganizationalUnitName, unit);
    params.distinguished_name = subject;
    let (since, until) = validity(now, life);
    let date = |moment: Timestamp| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(moment.timestamp().max(0).cast_unsigned())
    };
    params.not_before = date(since);
    params.not_after = date(until);
    params
}

/// The node id in a node's certificate: its common name. `None` for the certificate of a remote
/// client. The TLS handshake has verified the chain.
pub fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    node_named_in(&certificate)
}

/// The node that a parsed certificate is for.
fn node_named_in(certificate: &X509Certificate<'_>) -> Option<NodeId> {
    let unit = unit_of(certificate)?;
    let is_nodes =
        [NodeRole::Worker, NodeRole::Manager].iter().any(|role| organizational_unit(*role) == unit);
    common_name(certificate).filter(|_| is_nodes).map(NodeId::from)
}

fn unit_of<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    certificate.subject().iter_organizational_unit().next()?.as_str().ok()
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    certificate.subject().iter_common_name().next()?.as_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(now: Timestamp) -> Authority {
        let new = create_authority(&"cluster1".into(), now).unwrap();
        Authority::load(&new.certificate_pem, &new.key_pem).unwrap()
    }

    fn request() -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["wished-for".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "somebody-else");
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_members_certificate_says_what_the_cluster_says_not_what_was_asked() {
        let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        let authority = authority(now);
        let pem =
            authority.sign_member(&request(), &"node1".into(), NodeRole::Worker, MEMBER_LIFE, now).unwrap();
        let certificate = der(&pem);
        assert_eq!(node_of(&certificate), Some("node1".into()));
        let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
        let unit = parsed.subject().iter_organizational_unit().next().unwrap().as_str().unwrap();
        assert_eq!(unit, "mesh-worker");
        assert!(
            parsed.subject_alternative_name().unwrap().is_none(),
            "names from the request were taken over"
        );
        let seconds = parsed.validity().not_after.timestamp() - now.timestamp();
        assert_eq!(seconds.unsigned_abs(), MEMBER_LIFE.as_secs(), "seconds of life");
        let ca = der(authority.certificate_pem());
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        assert!(parsed.verify_signature(Some(ca.public_key())).is_ok(), "not signed by the CA");
    }

    #[test]
    fn a_short_life_is_not_due_for_renewal_at_once() {
        let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        for minutes in [1, 2, 60, 90 * 24 * 60] {
            let (since, until) = validity(now, Duration::from_mins(minutes));
            assert!(
                since < now && (now - since) < (until - since) / 10,
                "{minutes} minutes begin at {since}"
            );
        }
    }

    #[test]
    fn an_invalid_request_is_refused() {
        let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        for bad in ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
            let refused = authority(now).sign_member(bad, &"n".into(), NodeRole::Worker, MEMBER_LIFE, now);
            assert!(matches!(refused, Err(CaError::Request(_))), "{bad:?} was signed");
        }
    }

    #[test]
    fn the_server_presents_its_leaf_and_the_ca() {
        let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        let authority = authority(now);
        let server = authority.issue_server("10.77.0.11".parse().unwrap(), MEMBER_LIFE, now).unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(server.chain_pem.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(chain.len(), 2, "leaf and CA");
        assert_eq!(token::certificate_digest(&chain[1]), authority.digest());
    }
}
