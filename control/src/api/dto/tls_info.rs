//! `TLSInfo`: the CA, in the cluster's object and in each node's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use x509_parser::pem::parse_x509_pem;

/// The CA that nodes trust.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TlsInfo {
    trust_root: String,
    cert_issuer_subject: String,
    cert_issuer_public_key: String,
}

impl TlsInfo {
    /// The fields of a CA certificate, PEM; empty if it can't be parsed.
    pub(crate) fn of_ca(certificate_pem: &str) -> Self {
        let (subject, public_key) = parse_x509_pem(certificate_pem.as_bytes())
            .ok()
            .and_then(|(_, pem)| {
                let certificate = pem.parse_x509().ok()?;
                Some((
                    BASE64.encode(certificate.subject().as_raw()),
                    BASE64.encode(certificate.public_key().raw),
                ))
            })
            .unwrap_or_default();
        Self {
            trust_root: certificate_pem.to_owned(),
            cert_issuer_subject: subject,
            cert_issuer_public_key: public_key,
        }
    }
}
