//! `TLSInfo`: the CA, in the cluster's object and in each node's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mesh_state::cluster::Cluster;
use mesh_state::node::NodeDescription;
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
    /// The cluster's: the CA that join tokens name, and the one that is to sign all certificates,
    /// as in Swarm. While the CA is replaced they differ.
    pub(crate) fn of_cluster(cluster: &Cluster) -> Self {
        Self::new(cluster.ca_certificate_pem.clone(), cluster.wanted_issuer_pem())
    }

    /// A node's: the CAs that it trusts, and the one that signed its certificate. A node whose
    /// agent doesn't say it has those that the cluster has.
    pub(crate) fn of_node(cluster: &Cluster, said: &NodeDescription) -> Self {
        let current = cluster.ca_certificate_pem.as_str();
        if cluster.ca_rotation.is_none() {
            // A node that hasn't heard of the rotation's end trusts others, which aren't known any
            // more.
            let trusted = if said.trusts.len() > 1 { "" } else { current };
            return Self::new(trusted.to_owned(), current);
        }
        if said.certificate_issuer.is_empty() {
            return Self::new(current.to_owned(), current);
        }
        let trusted = said.trusts.iter().filter_map(|digest| cluster.rotating_pem(digest)).collect();
        Self::new(trusted, cluster.rotating_pem(&said.certificate_issuer).unwrap_or_default())
    }

    /// The fields of a CA that is trusted and one that signs, PEM; the latter's are empty if it
    /// can't be parsed.
    fn new(trust_root: String, issuer_pem: &str) -> Self {
        let (cert_issuer_subject, cert_issuer_public_key) = parse_x509_pem(issuer_pem.as_bytes())
            .ok()
            .and_then(|(_, pem)| {
                let certificate = pem.parse_x509().ok()?;
                Some((
                    BASE64.encode(certificate.subject().as_raw()),
                    BASE64.encode(certificate.public_key().raw),
                ))
            })
            .unwrap_or_default();
        Self { trust_root, cert_issuer_subject, cert_issuer_public_key }
    }
}
