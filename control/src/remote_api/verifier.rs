//! The check of a client's certificate in the TLS handshake.
//!
//! Invariant: what webpki refuses (a foreign CA, an expired certificate, a server's) stays refused;
//! this adds that the certificate is a client's that the cluster knows.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use tokio::sync::watch;

use super::standing::Standing;
use crate::ca::client::client_of;
use crate::feed::snapshot::ClusterSnapshot;

/// Admits the certificates of clients that the cluster knows.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    /// Checks the chain, the validity and the usage.
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    /// Has the clients' records.
    pub(super) snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now);
        let verified = verified.map_err(|error| match error {
            // The cluster's former CAs have the name of the present one, so webpki finds an issuer
            // whose key doesn't fit. `Unknown CA` tells the client what to do.
            Error::InvalidCertificate(CertificateError::BadSignature) => {
                CertificateError::UnknownIssuer.into()
            }
            other => other,
        })?;
        if client_of(end_entity).is_none() {
            // A node's certificate: the client sees `access denied`.
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        match Standing::of(&self.snapshots.borrow(), end_entity) {
            Some(_) => Ok(verified),
            None => Err(CertificateError::Revoked.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
