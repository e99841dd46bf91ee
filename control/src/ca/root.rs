//! Checks a CA that an operator brings, and finds the CA that signed a certificate.
//!
//! Invariant: pure.

use std::time::Duration;

use mesh_state::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::token::certificate_digest;
use super::{Authority, NewAuthority};

/// How long a CA must be valid at least, as in Swarm.
const LIFE_MIN: Duration = Duration::from_hours(365 * 24);
/// The most bytes of a certificate or a key.
const PEM_BYTES: usize = 64 << 10;

/// Why a CA can't become the cluster's.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RootError {
    /// The certificate or the key is longer than any is.
    #[error("a CA certificate and its key have at most {PEM_BYTES} bytes each")]
    TooLarge,
    /// The certificate can't be parsed.
    #[error("could not parse the desired CA certificate")]
    Certificate,
    /// There is more than one certificate.
    #[error("the desired CA certificate cannot contain multiple certificates")]
    Several,
    /// The certificate may not sign others.
    #[error("the desired CA certificate is not a CA's: its basic constraints don't say CA:TRUE")]
    NoCa,
    /// Another authority signed the certificate.
    #[error("the desired CA certificate is not self-signed: bring the root's certificate and key")]
    NoRoot,
    /// The certificate expires within a year.
    #[error("CA certificate expires too soon")]
    TooSoon,
    /// The certificate isn't valid yet.
    #[error("CA certificate is not valid yet")]
    NotYet,
    /// The key can't be parsed, or can't sign.
    #[error("malformed private key: it must be in PEM, unencrypted, of P-256, P-384, Ed25519 or RSA")]
    Key,
    /// The key is another certificate's.
    #[error("certificate key mismatch")]
    OtherKey,
}

/// The CA that an operator brings, checked.
///
/// # Errors
/// [`RootError`], in Swarm's words where it has some.
pub fn check(certificate_pem: &str, key_pem: &str, now: Timestamp) -> Result<NewAuthority, RootError> {
    if certificate_pem.len() > PEM_BYTES || key_pem.len() > PEM_BYTES {
        return Err(RootError::TooLarge);
    }
    let mut all = CertificateDer::pem_slice_iter(certificate_pem.as_bytes());
    let der = all.next().and_then(Result::ok).ok_or(RootError::Certificate)?;
    if all.next().is_some() {
        return Err(RootError::Several);
    }
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| RootError::Certificate)?;
    if !certificate.is_ca() {
        return Err(RootError::NoCa);
    }
    if certificate.verify_signature(None).is_err() {
        return Err(RootError::NoRoot);
    }
    let (since, until) = (certificate.validity().not_before, certificate.validity().not_after);
    if until.timestamp() < (now + LIFE_MIN).timestamp() {
        return Err(RootError::TooSoon);
    }
    if since.timestamp() > now.timestamp() {
        return Err(RootError::NotYet);
    }
    let key = KeyPair::from_pem(key_pem).map_err(|_| RootError::Key)?;
    if key.subject_public_key_info() != certificate.public_key().raw {
        return Err(RootError::OtherKey);
    }
    // As stored PEMs are compared: without what may stand around the certificate.
    let certificate_pem = pem(&der);
    Authority::load(&certificate_pem, key_pem).map_err(|_| RootError::Key)?;
    Ok(NewAuthority { certificate_pem, key_pem: Zeroizing::new(key_pem.to_owned()) })
}

/// A certificate in PEM, as [`rcgen`] writes it.
fn pem(der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Whether two CAs have one key.
pub fn have_one_key(one_pem: &str, other_pem: &str) -> bool {
    let key = |pem: &str| {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        Some(certificate.public_key().raw.to_vec())
    };
    key(one_pem).is_some_and(|one| Some(one) == key(other_pem))
}

/// The certificate of a CA that somebody trusts, parsed each time it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedRoot {
    /// SHA-256 of its certificate, by which managers and nodes name it.
    pub digest: String,
    pub(super) der: CertificateDer<'static>,
}

impl TrustedRoot {
    /// The CA with this certificate.
    ///
    /// # Errors
    /// It can't be parsed.
    pub fn read(certificate_pem: &str) -> Result<Self, rustls_pki_types::pem::Error> {
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())?;
        Ok(Self { digest: certificate_digest(&der), der })
    }

    /// When it expires.
    pub fn until(&self) -> Option<Timestamp> {
        let (_, certificate) = X509Certificate::from_der(&self.der).ok()?;
        Timestamp::from_timestamp(certificate.validity().not_after.timestamp(), 0)
    }

    /// Whether it signed `certificate`.
    pub fn signed(&self, certificate: &X509Certificate<'_>) -> bool {
        X509Certificate::from_der(&self.der)
            .is_ok_and(|(_, ca)| certificate.verify_signature(Some(ca.public_key())).is_ok())
    }
}

/// The digest of the one of `roots` that signed the certificate `der`.
pub fn issuer_of<'a>(roots: &'a [TrustedRoot], der: &CertificateDer<'_>) -> Option<&'a str> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    roots.iter().find(|root| root.signed(&certificate)).map(|root| root.digest.as_str())
}

#[cfg(test)]
mod tests {
    use mesh_state::node::NodeRole;
    use rcgen::{BasicConstraints, CertificateParams, IsCa};

    use super::*;
    use crate::ca::{MEMBER_LIFE, create_authority};

    fn now() -> Timestamp {
        Timestamp::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn made(days: i64, is_ca: bool) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        let until = u64::try_from(now().timestamp() + days * 86_400).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(until);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn only_a_root_with_its_key_that_lasts_a_year_is_taken() {
        let (good, key) = made(400, true);
        let taken = check(&format!("a note\n{good}\n\n"), &key, now()).unwrap();
        assert_eq!(
            taken.certificate_pem.trim(),
            good.replace('\r', "").trim(),
            "what stands around it is left out"
        );
        let (soon, soon_key) = made(300, true);
        let (leaf, leaf_key) = made(400, false);
        let refused = |certificate: &str, key: &str| check(certificate, key, now()).map(|_| ()).unwrap_err();
        assert_eq!(refused(&soon, &soon_key), RootError::TooSoon);
        assert_eq!(refused(&leaf, &leaf_key), RootError::NoCa);
        assert_eq!(refused(&good, &soon_key), RootError::OtherKey);
        assert_eq!(refused(&good, "x"), RootError::Key);
        assert_eq!(refused("x", &key), RootError::Certificate);
        assert_eq!(refused(&format!("{good}{soon}"), &key), RootError::Several);
        assert_eq!(refused(&"x".repeat(PEM_BYTES + 1), &key), RootError::TooLarge);
        assert!(have_one_key(&good, &good) && !have_one_key(&good, &soon));
    }

    #[test]
    fn the_issuer_of_a_certificate_is_found_among_several() {
        let new = || create_authority(&"c".into(), now()).unwrap();
        let (first, second) = (new(), new());
        let roots = [&first, &second].map(|ca| TrustedRoot::read(&ca.certificate_pem).unwrap());
        let authority = Authority::load(&second.certificate_pem, &second.key_pem).unwrap();
        let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let pem = request.pem().unwrap();
        let signed = authority.sign_member(&pem, &"n1".into(), NodeRole::Worker, MEMBER_LIFE, now()).unwrap();
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        assert_eq!(issuer_of(&roots, &der), Some(roots[1].digest.as_str()));
        assert_eq!(issuer_of(&roots[..1], &der), None);
        assert!(roots[0].until().is_some_and(|until| until > now()));
    }
}
