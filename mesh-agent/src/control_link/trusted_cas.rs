//! The CAs that this node trusts, as managers tell them: one, or more while the cluster's CA is
//! replaced.
//!
//! Invariants: pure; what can't be parsed, or says nothing, is not taken.

use mesh_state::ca::TRUSTED_MAX;
use mesh_state::proto;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::Link;
use super::identity::{Identity, IdentityError};
use super::session::SessionError;
use super::token::certificate_digest;

/// What a manager told this node of its CAs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldCas {
    /// The certificates of those to trust, PEM.
    pub ca_pem: String,
    /// Whether this node is to renew its certificate now.
    pub renew: bool,
}

impl ToldCas {
    /// Reads a manager's message; `None` if it names no CA, too many, or what is no certificate.
    pub fn read(told: proto::TrustedCas) -> Option<Self> {
        let proto::TrustedCas { ca_pem, renew } = told;
        let number = ders(&ca_pem)?.len();
        (1..=TRUSTED_MAX).contains(&number).then_some(Self { ca_pem, renew })
    }
}

impl Link {
    /// Takes what a manager told of its CAs; [`super::renewal`] acts on it.
    pub(super) fn take_cas(&self, told: proto::TrustedCas) -> Result<(), SessionError> {
        let told = ToldCas::read(told)
            .ok_or(SessionError::Protocol { problem: "CAs to trust that can't be read came" })?;
        self.channels.trusted_cas.send_replace(Some(told));
        Ok(())
    }
}

impl Identity {
    /// The digests of the CAs that this node trusts.
    pub fn trusts(&self) -> Vec<String> {
        ders(&self.ca_pem).unwrap_or_default().iter().map(certificate_digest).collect()
    }

    /// The digest of the trusted CA that signed this node's certificate; `None` if none did.
    ///
    /// # Errors
    /// The certificate can't be parsed.
    pub fn issuer(&self) -> Result<Option<String>, IdentityError> {
        let certificate = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .map_err(|_| IdentityError::Certificate)?;
        let (_, certificate) =
            X509Certificate::from_der(&certificate).map_err(|_| IdentityError::Certificate)?;
        let signed = |ca: &&CertificateDer<'_>| {
            X509Certificate::from_der(ca)
                .is_ok_and(|(_, ca)| certificate.verify_signature(Some(ca.public_key())).is_ok())
        };
        let trusted = ders(&self.ca_pem).unwrap_or_default();
        Ok(trusted.iter().find(signed).map(certificate_digest))
    }
}

/// The certificates in a PEM text; `None` if one can't be parsed.
fn ders(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().ok()?;
    all.iter().all(|der| X509Certificate::from_der(der).is_ok()).then_some(all)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    fn told(ca_pem: &str) -> Option<ToldCas> {
        ToldCas::read(proto::TrustedCas { ca_pem: ca_pem.to_owned(), renew: false })
    }

    fn ca() -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a CA").pem();
        (pem, Issuer::new(params, key))
    }

    #[test]
    fn only_certificates_are_taken_and_not_too_many() {
        let (pem, _) = ca();
        assert_eq!(told(&pem).map(|told| told.ca_pem), Some(pem.clone()));
        assert!(told(&pem.repeat(TRUSTED_MAX)).is_some());
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for bad in ["", "x", broken, &format!("{pem}{broken}"), &pem.repeat(TRUSTED_MAX + 1)] {
            assert_eq!(told(bad), None, "taken: {bad}");
        }
    }

    #[test]
    fn the_issuer_is_one_of_those_that_are_trusted() {
        let ((first, _), (second, issuer)) = (ca(), ca());
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::default().signed_by(&key, &issuer).expect("a certificate");
        let identity = |ca_pem: String| Identity {
            node_id: "n1".into(),
            key_pem: key.serialize_pem(),
            certificate_pem: leaf.pem(),
            ca_pem,
        };
        let both = identity(format!("{first}{second}"));
        assert_eq!(both.trusts().len(), 2);
        assert_eq!(both.issuer().expect("read"), Some(both.trusts()[1].clone()));
        assert_eq!(identity(first).issuer().expect("read"), None);
    }
}
