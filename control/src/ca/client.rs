//! Certificates of clients that use the Docker API from other machines.
//!
//! Invariants: an organizational unit of their own tells them from nodes' certificates, so neither
//! opens what is meant for the other; nothing of a request but its key is used.

use std::time::Duration;

use mesh_state::Timestamp;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::token::certificate_digest;
use super::{Authority, CaError, common_name, params, unit_of, validity};

/// The organizational unit in clients' certificates.
const CLIENT_UNIT: &str = "mesh-client";

/// A client's new certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate in PEM.
    pub pem: String,
    /// SHA-256 of the certificate, by which managers know it.
    pub digest: String,
    /// When it expires.
    pub until: Timestamp,
}

impl Authority {
    /// Issues the certificate of the client `name` for the key in its request.
    ///
    /// # Errors
    /// [`CaError::Request`] if the request can't be parsed, [`CaError::Sign`].
    pub fn sign_client(
        &self,
        csr_pem: &str,
        name: &str,
        life: Duration,
        now: Timestamp,
    ) -> Result<ClientCertificate, CaError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CaError::Request)?;
        let mut params = params(name, CLIENT_UNIT, now, life);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|source| CaError::Sign { name: name.to_owned(), source })?;
        let (_, until) = validity(now, life);
        Ok(ClientCertificate { pem: signed.pem(), digest: certificate_digest(signed.der()), until })
    }
}

/// The name in a client's certificate; `None` for the certificate of a node or a server.
pub fn client_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let is_clients = unit_of(&certificate) == Some(CLIENT_UNIT);
    common_name(&certificate).filter(|_| is_clients).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use mesh_state::node::NodeRole;
    use rcgen::{CertificateParams, KeyPair};
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::ca::expired::{ExpiredError, holder_of};
    use crate::ca::root::TrustedRoot;
    use crate::ca::{MEMBER_LIFE, create_authority, node_of};

    #[test]
    fn a_client_is_no_node_and_a_node_is_no_client() {
        let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        let new = create_authority(&"c".into(), now).unwrap();
        let authority = Authority::load(&new.certificate_pem, &new.key_pem).unwrap();
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();

        let client = authority.sign_client(&request, "n1", MEMBER_LIFE, now).unwrap();
        let certificate = der(&client.pem);
        assert_eq!(client_of(&certificate).as_deref(), Some("n1"));
        assert_eq!(node_of(&certificate), None, "a client was taken for the node of its name");
        assert_eq!(client.digest, certificate_digest(&certificate));
        assert_eq!(client.until, now + MEMBER_LIFE);
        let roots = [TrustedRoot::read(authority.certificate_pem()).unwrap()];
        let renewed = holder_of(&roots, &client.pem, &request, now);
        assert_eq!(renewed, Err(ExpiredError::NoMember), "a client renewed its certificate as a node");

        for role in [NodeRole::Worker, NodeRole::Manager] {
            let node = authority.sign_member(&request, &"n1".into(), role, MEMBER_LIFE, now).unwrap();
            assert_eq!(client_of(&der(&node)), None, "a {role:?} was taken for a client");
        }
        let hosts = ["10.0.0.1", "fd00::1", "manager.example"].map(str::to_owned);
        let server = authority.issue_server_for(&hosts, MEMBER_LIFE, now).unwrap();
        let leaf = der(&server.chain_pem);
        assert_eq!(client_of(&leaf), None, "a server was taken for a client");
        let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 4, "the server's name and its hosts: {names:?}");
    }
}
