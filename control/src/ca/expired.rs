//! Verifies that a member with an expired certificate, which was away when it should have renewed,
//! holds the certificate's key.
//!
//! TLS refuses an expired certificate, so such a member sends it in the request. Its certificate
//! request is signed with the certificate's own key, which proves that the sender holds that key; a
//! replay of the request yields a certificate that only the key's holder can use.
//!
//! Invariant: pure.

use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use mesh_state::renewal;
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;

use super::node_named_in;
use super::root::TrustedRoot;

/// Why an expired certificate isn't renewed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ExpiredError {
    /// The certificate or the request can't be parsed.
    #[error("the {0} can't be read")]
    Unreadable(&'static str),
    /// Another CA signed the certificate.
    #[error("the certificate is not of this cluster")]
    Foreign,
    /// The certificate is not a member's.
    #[error("the certificate is no member's")]
    NoMember,
    /// The request isn't signed with the certificate's key.
    #[error("the request is not signed with the certificate's key")]
    OtherKey,
    /// The certificate expired too long ago.
    #[error(
        "the certificate expired more than {} days ago: remove the node's identity file and let it join again with a token",
        renewal::GRACE.as_secs() / 86_400
    )]
    TooLate,
}

/// The node that holds this certificate of one of `roots`, if the sender of `csr_pem` has its key
/// and it has not expired too long ago.
///
/// # Errors
/// [`ExpiredError`], with a text for the operator.
pub fn holder_of(
    roots: &[TrustedRoot],
    certificate_pem: &str,
    csr_pem: &str,
    now: Timestamp,
) -> Result<NodeId, ExpiredError> {
    let unreadable = || ExpiredError::Unreadable("certificate");
    let (_, pem) = parse_x509_pem(certificate_pem.as_bytes()).map_err(|_| unreadable())?;
    let certificate = pem.parse_x509().map_err(|_| unreadable())?;
    if !roots.iter().any(|root| root.signed(&certificate)) {
        return Err(ExpiredError::Foreign);
    }
    let is_member = certificate
        .extended_key_usage()
        .ok()
        .flatten()
        .is_some_and(|usage| usage.value.client_auth && !usage.value.server_auth);
    let node = node_named_in(&certificate).filter(|_| is_member).ok_or(ExpiredError::NoMember)?;

    let unreadable = || ExpiredError::Unreadable("certificate request");
    let (_, pem) = parse_x509_pem(csr_pem.as_bytes()).map_err(|_| unreadable())?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).map_err(|_| unreadable())?;
    let same_key = request.certification_request_info.subject_pki.raw == certificate.public_key().raw;
    if !same_key || request.verify_signature().is_err() {
        return Err(ExpiredError::OtherKey);
    }
    let until = Timestamp::from_timestamp(certificate.validity().not_after.timestamp(), 0);
    match until.filter(|until| renewal::is_possible(*until, now)) {
        Some(_) => Ok(node),
        None => Err(ExpiredError::TooLate),
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::node::NodeRole;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::ca::{Authority, MEMBER_LIFE, create_authority};

    fn authority(now: Timestamp) -> Authority {
        let new = create_authority(&"cluster1".into(), now).unwrap();
        Authority::load(&new.certificate_pem, &new.key_pem).unwrap()
    }

    fn request(key: &KeyPair) -> String {
        CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_holder_of_an_expired_certificate_is_accepted_for_a_while() {
        let issued = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        let (authority, other) = (authority(issued), authority(issued));
        let (key, stranger) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let sign = |authority: &Authority| {
            authority
                .sign_member(&request(&key), &"n1".into(), NodeRole::Worker, MEMBER_LIFE, issued)
                .unwrap()
        };
        let certificate = sign(&authority);
        let after = |days| issued + chrono::Duration::days(days);
        let roots = [TrustedRoot::read(authority.certificate_pem()).unwrap()];
        let holder = |certificate: &str, key: &KeyPair, days| {
            holder_of(&roots, certificate, &request(key), after(days))
        };
        assert_eq!(holder(&certificate, &key, 91), Ok("n1".into()), "a day after its end");
        assert_eq!(holder(&certificate, &key, 10), Ok("n1".into()), "before its end");
        assert_eq!(holder(&certificate, &key, 100), Err(ExpiredError::TooLate));
        assert_eq!(holder(&certificate, &stranger, 91), Err(ExpiredError::OtherKey));
        assert_eq!(holder(&sign(&other), &key, 91), Err(ExpiredError::Foreign));
        let server = authority.issue_server("10.0.0.1".parse().unwrap(), MEMBER_LIFE, issued).unwrap();
        let server_key = KeyPair::from_pem(&server.key_pem).unwrap();
        assert_eq!(holder(&server.chain_pem, &server_key, 10), Err(ExpiredError::NoMember));
        assert_eq!(holder("x", &key, 10), Err(ExpiredError::Unreadable("certificate")));

        let forged = holder_of(&roots, &certificate, &certificate, after(91));
        assert!(forged.is_err(), "a certificate was taken for a request: {forged:?}");
    }
}
