//! The cluster's certificate authorities: the one that it has, and the others while it is replaced.
//!
//! Invariant: pure. Digests are the SHA-256 of a certificate in DER, in lowercase hex, as join
//! tokens have them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Timestamp;
use crate::cluster::{Cluster, Sealed};

/// The most CAs that stay trusted beside the cluster's own and the one that it is to have.
const FORMER_MAX: usize = 6;
/// The most CAs that anybody trusts at a time.
pub const TRUSTED_MAX: usize = FORMER_MAX + 2;

/// The certificate of a CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCa {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its digest, by which managers and nodes say which CAs they trust.
    pub digest: String,
}

/// The steps of a rotation, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaStage {
    /// Managers learn to trust the new CA. The present one signs everything.
    Trust,
    /// The new CA signs nodes' certificates, and nodes renew theirs. The present one still signs
    /// the managers' servers.
    Issue,
    /// The new CA is the cluster's, and signs everything. Managers replace their servers'
    /// certificates.
    Serve,
}

/// The cluster's CA is being replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRotation {
    /// How far it is.
    pub stage: CaStage,
    /// The digest of the CA that the cluster has.
    pub current: String,
    /// The CA that the cluster is to have. In [`CaStage::Serve`] it has it.
    pub target: RootCa,
    /// The target's private key, PEM, sealed.
    pub target_key: Sealed,
    /// Further CAs that stay trusted until the rotation ends, as nodes or managers may have
    /// certificates of theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<RootCa>,
    /// When the operator asked for it.
    pub started_at: Timestamp,
}

/// The CAs of a manager, as it says in its record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ManagerCas {
    /// The digests of those whose nodes its server accepts.
    pub trusts: BTreeSet<String>,
    /// The digest of the one that signed its server's certificate.
    pub issuer: String,
    /// The digest of the one with which it signs nodes' certificates.
    #[serde(default)]
    pub signer: String,
}

impl CaRotation {
    /// The digest of the CA that signs nodes' certificates.
    pub fn issuer(&self) -> &str {
        match self.stage {
            CaStage::Trust => &self.current,
            CaStage::Issue | CaStage::Serve => &self.target.digest,
        }
    }

    /// Whether a node with a certificate of this CA is to renew it now.
    pub fn is_to_renew(&self, issuer: &str) -> bool {
        self.stage != CaStage::Trust && self.target.digest != issuer
    }

    /// The digests of the CAs that everybody is to trust.
    pub fn trusted(&self) -> BTreeSet<String> {
        let further = self.former.iter().chain([&self.target]).map(|root| root.digest.clone());
        further.chain([self.current.clone()]).collect()
    }
}

impl Cluster {
    /// The certificates that nodes and managers are to trust, PEM: the cluster's CA first.
    pub fn trusted_pems(&self) -> Vec<&str> {
        let mut pems = vec![self.ca_certificate_pem.as_str()];
        if let Some(rotation) = &self.ca_rotation {
            for root in [&rotation.target].into_iter().chain(&rotation.former) {
                if !pems.contains(&root.certificate_pem.as_str()) {
                    pems.push(&root.certificate_pem);
                }
            }
        }
        pems
    }

    /// The certificate, PEM, of the CA with this digest, if it is one of those of a rotation under
    /// way.
    pub fn rotating_pem(&self, digest: &str) -> Option<&str> {
        let rotation = self.ca_rotation.as_ref()?;
        if rotation.current == digest {
            return Some(&self.ca_certificate_pem);
        }
        let mut further = rotation.former.iter().chain([&rotation.target]);
        further.find(|root| root.digest == digest).map(|root| root.certificate_pem.as_str())
    }

    /// The certificate of the CA by which nodes' certificates are to be signed in the end, PEM.
    pub fn wanted_issuer_pem(&self) -> &str {
        let rotation = self.ca_rotation.as_ref();
        rotation.map_or(&self.ca_certificate_pem, |rotation| &rotation.target.certificate_pem)
    }
}

/// Too many CAs would be trusted at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the CA was rotated {FORMER_MAX} times before any of these rotations has ended: wait until docker swarm ca --rotate shows no \
     more progress, and look for nodes that are down"
)]
pub struct TooManyCas;

/// The record once its operator wants `wanted`, with the sealed key `key`, as the cluster's CA.
/// `current` is the digest of the CA that it has now.
///
/// A rotation under way goes on towards the new wish; wishing for the present CA takes it back.
///
/// # Errors
/// [`TooManyCas`]
pub fn begin(
    cluster: &Cluster,
    current: &str,
    wanted: RootCa,
    key: Sealed,
    now: Timestamp,
) -> Result<Cluster, TooManyCas> {
    let mut next = cluster.clone();
    let mut former = Vec::new();
    match &mut next.ca_rotation {
        None if wanted.digest == current => {
            next.ca_key = key;
            return Ok(next);
        }
        Some(rotation) if rotation.target.digest == wanted.digest => {
            rotation.target_key = key;
            return Ok(next);
        }
        None => {}
        Some(rotation) => {
            former.clone_from(&rotation.former);
            if rotation.target.digest != current {
                former.push(rotation.target.clone());
            }
            former.retain(|root| root.digest != wanted.digest);
        }
    }
    if former.len() > FORMER_MAX {
        return Err(TooManyCas);
    }
    let (stage, current) = (CaStage::Trust, current.to_owned());
    next.ca_rotation =
        Some(CaRotation { stage, current, target: wanted, target_key: key, former, started_at: now });
    Ok(next)
}
