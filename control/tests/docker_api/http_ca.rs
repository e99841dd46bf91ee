//! Tests of `docker swarm ca` over HTTP: what begins a rotation, what is shown of it, and refusals.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster};

async fn update(cluster: &Cluster, config: Value) -> Answer {
    let mut swarm = cluster.get("/swarm").await.body;
    let wanted = swarm["Spec"]["CAConfig"].as_object_mut().unwrap();
    wanted.extend(config.as_object().unwrap().clone());
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    cluster.post(&path, &swarm["Spec"]).await
}

/// A root that lasts so many years, with its key.
fn root(years: i32, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    let this_year = chrono::Datelike::year(&chrono::Utc::now());
    params.not_after = rcgen::date_time_ymd(this_year + years, 12, 31);
    params.self_signed(key).unwrap().pem()
}

#[tokio::test]
async fn a_rotation_is_shown_until_it_is_taken_back() {
    let cluster = Cluster::start().await;
    let before = cluster.get("/swarm").await.body;
    assert_eq!(
        (&before["RootRotationInProgress"], &before["Spec"]["CAConfig"]["ForceRotate"]),
        (&json!(false), &Value::Null)
    );
    let begun = update(&cluster, json!({"ForceRotate": 1})).await;
    assert_eq!(begun.status, 200, "{}", begun.body);
    let swarm = cluster.get("/swarm").await.body;
    assert_eq!(
        (&swarm["RootRotationInProgress"], &swarm["Spec"]["CAConfig"]["ForceRotate"]),
        (&json!(true), &json!(1))
    );
    let root_of = |swarm: &Value| swarm["TLSInfo"]["TrustRoot"].clone();
    let issuer_of = |swarm: &Value| swarm["TLSInfo"]["CertIssuerPublicKey"].clone();
    assert_eq!(
        root_of(&swarm),
        root_of(&before),
        "tokens name the former CA until all nodes trust the new one"
    );
    assert_eq!(swarm["JoinTokens"], before["JoinTokens"]);
    assert_ne!(issuer_of(&swarm), issuer_of(&before));
    let node = cluster.get("/nodes/node-1").await.body;
    assert_eq!(issuer_of(&node["Description"]), issuer_of(&before), "no node has a new certificate");

    // An update that sends back what it read rotates nothing; the next number does.
    let unchanged = update(&cluster, json!({})).await;
    assert_eq!(unchanged.status, 200, "{}", unchanged.body);
    assert_eq!(issuer_of(&cluster.get("/swarm").await.body), issuer_of(&swarm));
    assert_eq!(update(&cluster, json!({"ForceRotate": 2})).await.status, 200);
    let again = cluster.get("/swarm").await.body;
    assert_ne!(issuer_of(&again), issuer_of(&swarm), "another CA");
    assert_eq!(root_of(&again), root_of(&before));
    let shown = again.to_string();
    assert!(
        !shown.contains("PRIVATE KEY")
            && !cluster.get("/info").await.body.to_string().contains("PRIVATE KEY")
    );
}

#[tokio::test]
async fn an_operators_ca_is_checked_in_swarms_words() {
    let cluster = Cluster::start().await;
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (good, soon) = (root(3, &key), root(0, &key));
    let refusal = |code, said: &str| (code, format!("rpc error: code = InvalidArgument desc = {said}"));
    for (certificate, key_pem, said) in [
        (soon, key.serialize_pem(), "CA certificate expires too soon"),
        (good.clone(), other.serialize_pem(), "certificate key mismatch"),
        (
            format!("{good}{good}"),
            key.serialize_pem(),
            "the desired CA certificate cannot contain multiple certificates",
        ),
        ("x".to_owned(), key.serialize_pem(), "could not parse the desired CA certificate"),
    ] {
        let refused = update(&cluster, json!({"SigningCACert": certificate, "SigningCAKey": key_pem})).await;
        let (code, text) = refused.refusal();
        assert_eq!((code, text.to_owned()), refusal(400, said));
    }
    let taken = update(&cluster, json!({"SigningCACert": good, "SigningCAKey": key.serialize_pem()})).await;
    assert_eq!(taken.status, 200, "{}", taken.body);
    let swarm = cluster.get("/swarm").await.body;
    assert_eq!(swarm["RootRotationInProgress"], json!(true));
    assert_eq!(swarm["Spec"]["CAConfig"].get("SigningCACert"), None, "what was given is not in the spec");
}
