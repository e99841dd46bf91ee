//! Verifies managers before this node is a member: a server's chain must end in the CA whose digest
//! the join token holds.
//!
//! Invariants: the CA certificate comes from the server but counts only if its SHA-256 is the
//! pinned one; everything else (chain, name, validity, signature) is checked as usual against that
//! one root.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use subtle::ConstantTimeEq;
use thiserror::Error as ThisError;

use super::token::certificate_digest;

/// Verifies servers against a CA of which only the digest is known.
#[derive(Debug)]
pub(super) struct PinnedCa {
    digest: String,
    provider: Arc<CryptoProvider>,
}

/// No certificate of the server's chain is the pinned CA.
#[derive(Debug, ThisError)]
#[error(
    "the manager's CA is not the one that the join token names: fetch a new token from the cluster you mean"
)]
struct UnknownCa;

/// Whether an error says that a server's CA is not the pinned one.
pub(super) fn is_unknown_ca(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<Error>() {
        Some(Error::Other(OtherError(inner))) => inner.is::<UnknownCa>(),
        _ => error.is::<UnknownCa>(),
    }
}

impl PinnedCa {
    /// A verifier for the CA with this digest, 64 lowercase hex digits.
    pub(super) fn new(digest: &str) -> Self {
        Self { digest: digest.to_owned(), provider: Arc::new(ring::default_provider()) }
    }

    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        certificate_digest(certificate).as_bytes().ct_eq(self.digest.as_bytes()).into()
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| self.is_pinned(certificate))
            .ok_or_else(|| Error::Other(OtherError(Arc::new(UnknownCa))))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::Other(OtherError(Arc::new(error))))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    struct Server {
        leaf: CertificateDer<'static>,
        ca: CertificateDer<'static>,
    }

    fn server(name: &str) -> Server {
        let ca_key = KeyPair::generate().expect("a CA key");
        let mut ca_params = CertificateParams::new(Vec::new()).expect("CA parameters");
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).expect("a CA certificate").der().clone();
        let issuer = Issuer::new(ca_params, ca_key);
        let key = KeyPair::generate().expect("a leaf key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("leaf parameters");
        Server { leaf: params.signed_by(&key, &issuer).expect("a leaf certificate").der().clone(), ca }
    }

    fn verify(pinned: &CertificateDer<'_>, leaf: &CertificateDer<'_>, sent: &CertificateDer<'_>) -> bool {
        let name = ServerName::try_from("mesh-manager").expect("a server name");
        PinnedCa::new(&certificate_digest(pinned))
            .verify_server_cert(leaf, std::slice::from_ref(sent), &name, &[], UnixTime::now())
            .is_ok()
    }

    #[test]
    fn only_the_pinned_cas_servers_are_believed() {
        let (ours, other) = (server("mesh-manager"), server("mesh-manager"));
        assert!(verify(&ours.ca, &ours.leaf, &ours.ca), "the pinned CA's own server was refused");
        assert!(!verify(&ours.ca, &other.leaf, &other.ca), "another CA was taken");
        assert!(
            !verify(&ours.ca, &other.leaf, &ours.ca),
            "a leaf of another CA under the pinned one was taken"
        );
        let misnamed = server("elsewhere");
        assert!(!verify(&misnamed.ca, &misnamed.leaf, &misnamed.ca), "a server of another name was taken");
    }
}
