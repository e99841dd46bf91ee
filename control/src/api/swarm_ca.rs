//! What an update of the swarm wants of the cluster's CA, and the record with it. Pure.

use mesh_state::Timestamp;
use mesh_state::ca::{RootCa, begin};
use mesh_state::cluster::{Cluster, Sealed};

use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use crate::ca::root::{self, TrustedRoot};

/// The part of Docker's `Spec` of a swarm about its CA.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CaConfig {
    /// The validity of nodes' certificates, nanoseconds.
    pub(super) node_cert_expiry: Option<i64>,
    #[serde(rename = "ExternalCAs")]
    pub(super) external_cas: Option<Vec<Value>>,
    #[serde(rename = "SigningCACert")]
    signing_ca_cert: Option<String>,
    #[serde(rename = "SigningCAKey")]
    signing_ca_key: Option<String>,
    pub(super) force_rotate: Option<u64>,
}

/// What an update wants of the CA.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish<'a> {
    /// That it stays as it is.
    Keep,
    /// A new one, made by this manager.
    Fresh,
    /// The one that the operator gives.
    Given {
        /// Its certificate, PEM.
        certificate_pem: &'a str,
        /// Its key, PEM.
        key_pem: &'a str,
    },
}

/// What an update wants of the CA of `cluster`. A client raises `ForceRotate` to have a new one; a
/// certificate and a key are in the update alone, and never shown.
///
/// # Errors
/// A key without a certificate, or the other way round.
pub(crate) fn wish<'a>(config: &'a CaConfig, cluster: &Cluster) -> Result<Wish<'a>, ApiError> {
    let text = |field: &'a Option<String>| field.as_deref().map(str::trim).unwrap_or_default();
    let (certificate_pem, key_pem) = (text(&config.signing_ca_cert), text(&config.signing_ca_key));
    match (certificate_pem.is_empty(), key_pem.is_empty()) {
        (true, false) => Err(ApiError::Invalid(
            "if a signing CA key is provided, the signing CA cert must also be provided".to_owned(),
        )),
        (false, true) => Err(ApiError::Invalid(
            "mesh has no external CAs: provide the signing CA key with the signing CA cert".to_owned(),
        )),
        (false, false) => Ok(Wish::Given { certificate_pem, key_pem }),
        (true, true) => {
            let asked = config.force_rotate.unwrap_or_default();
            Ok(if asked > 0 && asked != cluster.force_rotate { Wish::Fresh } else { Wish::Keep })
        }
    }
}

/// The record once the cluster is to have this CA.
///
/// # Errors
/// The CA has the key of the present one, or too many rotations are under way.
pub(super) fn rotate(
    cluster: &Cluster,
    (wanted, key): (RootCa, Sealed),
    now: Timestamp,
) -> Result<Cluster, ApiError> {
    let current = TrustedRoot::read(&cluster.ca_certificate_pem)
        .map_err(|error| ApiError::Unseal(format!("read the cluster's CA certificate: {error}")))?;
    let is_other = current.digest != wanted.digest;
    if is_other && root::have_one_key(&cluster.ca_certificate_pem, &wanted.certificate_pem) {
        return Err(ApiError::Invalid("Cannot update to a cert with an identical key".to_owned()));
    }
    begin(cluster, &current.digest, wanted, key, now)
        .map_err(|error| ApiError::Precondition(error.to_string()))
}

#[cfg(test)]
mod tests {
    use mesh_state::ca::CaStage;
    use serde_json::json;

    use super::*;
    use crate::ca::create_authority;
    use crate::fixtures::cluster;

    fn config(json: &Value) -> CaConfig {
        serde_json::from_value(json.clone()).unwrap()
    }

    #[test]
    fn a_raised_number_wants_a_new_ca_and_an_equal_one_nothing() {
        let known = Cluster { force_rotate: 3, ..cluster() };
        for (asked, expected) in [
            (json!({}), Wish::Keep),
            (json!({"ForceRotate": 0}), Wish::Keep),
            (json!({"ForceRotate": 3}), Wish::Keep),
            (json!({"ForceRotate": 4}), Wish::Fresh),
            (
                json!({"ForceRotate": 4, "SigningCACert": "c\n", "SigningCAKey": "k"}),
                Wish::Given { certificate_pem: "c", key_pem: "k" },
            ),
        ] {
            assert_eq!(wish(&config(&asked), &known).unwrap(), expected, "{asked}");
        }
        for (asked, said) in [
            (json!({"SigningCAKey": "k"}), "the signing CA cert must also be provided"),
            (json!({"SigningCACert": "c"}), "provide the signing CA key"),
        ] {
            let refused = wish(&config(&asked), &known).unwrap_err().message();
            assert!(refused.contains(said), "{asked}: {refused}");
        }
    }

    #[test]
    fn a_rotation_begins_changes_its_target_and_is_taken_back() {
        let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        let root = || {
            let new = create_authority(&"c".into(), now).unwrap();
            let digest = TrustedRoot::read(&new.certificate_pem).unwrap().digest;
            RootCa { certificate_pem: new.certificate_pem, digest }
        };
        let (first, second, third) = (root(), root(), root());
        let key = |name: &str| Sealed(name.to_owned());
        let record = Cluster { ca_certificate_pem: first.certificate_pem.clone(), ..cluster() };
        let same = rotate(&record, (first.clone(), key("a")), now).unwrap();
        assert_eq!((same.ca_rotation, same.ca_key), (None, key("a")), "the CA that it has");

        let begun = rotate(&record, (second.clone(), key("b")), now).unwrap();
        let again = rotate(&begun, (second.clone(), key("b")), now).unwrap();
        assert_eq!(again, begun, "the same wish again");
        let changed = rotate(&begun, (third.clone(), key("c")), now).unwrap();
        let rotation = changed.ca_rotation.as_ref().unwrap();
        assert_eq!((rotation.stage, &rotation.target), (CaStage::Trust, &third));
        assert_eq!(rotation.former, std::slice::from_ref(&second));
        assert_eq!(changed.trusted_pems().len(), 3);
        let back = rotate(&begun, (first.clone(), key("a")), now).unwrap();
        let rotation = back.ca_rotation.as_ref().unwrap();
        assert_eq!((&rotation.target, rotation.former.as_slice()), (&first, [second].as_slice()));
        assert_eq!(back.wanted_issuer_pem(), first.certificate_pem);

        let mut many = changed;
        let refused = loop {
            match rotate(&many, (root(), key("x")), now) {
                Ok(next) => many = next,
                Err(error) => break error.message(),
            }
            assert!(many.trusted_pems().len() <= mesh_state::ca::TRUSTED_MAX);
        };
        assert!(refused.contains("before any of these rotations has ended"), "{refused}");
    }
}
