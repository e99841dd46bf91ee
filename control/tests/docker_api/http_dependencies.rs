//! Tests of secrets and configs over HTTP.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster, spec};
use crate::http::encoded;

/// A value that must appear nowhere.
const VALUE: &str = "correct horse battery staple";

async fn store(cluster: &Cluster, kind: &str, name: &str, data: &[u8]) -> String {
    let body = json!({"Name": name, "Labels": {"tier": name}, "Data": BASE64.encode(data)});
    let answer = cluster.post(&format!("/v1.41/{kind}/create"), &body).await;
    assert_eq!(answer.status, 201, "creating {kind} {name}: {}", answer.body);
    answer.body["ID"].as_str().unwrap().to_owned()
}

/// A service that refers to a secret by id and name.
fn using(service: &str, id: &str, name: &str) -> Value {
    let mut spec = spec(service, 1);
    spec["TaskTemplate"]["ContainerSpec"]["Secrets"] = json!([{"File": {"Name": name, "UID": "0", "GID": "0", "Mode": 292}, "SecretID": id, "SecretName": name}]);
    spec
}

async fn relabel(cluster: &Cluster, kind: &str, id: &str, change: impl FnOnce(&mut Value)) -> Answer {
    let mut found = cluster.get(&format!("/{kind}/{id}")).await.body;
    change(&mut found["Spec"]);
    let version = found["Version"]["Index"].as_i64().unwrap();
    cluster.post(&format!("/{kind}/{id}/update?version={version}"), &found["Spec"]).await
}

#[tokio::test]
async fn a_secret_is_never_shown_and_a_config_is() {
    let cluster = Cluster::start().await;
    let secret = store(&cluster, "secrets", "db", VALUE.as_bytes()).await;
    let config = store(&cluster, "configs", "app", VALUE.as_bytes()).await;
    for path in [format!("/secrets/{secret}"), "/secrets/db".to_owned(), format!("/secrets/{}", &secret[..9])]
    {
        let found = cluster.get(&path).await.body;
        assert_eq!(found["ID"], secret.as_str(), "GET {path}");
        assert_eq!(found["Spec"], json!({"Name": "db", "Labels": {"tier": "db"}}), "GET {path}");
        assert!(found["Version"]["Index"].as_i64().is_some_and(|index| index > 0), "saw {found}");
    }
    let encoded = BASE64.encode(VALUE);
    let found = cluster.get("/configs/app").await.body;
    assert_eq!(found["Spec"], json!({"Name": "app", "Labels": {"tier": "app"}, "Data": encoded}));
    let listed = cluster.get("/configs").await.body;
    assert_eq!((&listed[0]["ID"], &listed[0]["Spec"]["Data"]), (&json!(config), &json!(encoded)));

    // The value is sealed in the store, and not in what managers watch.
    for item in cluster.store.list("/").await.unwrap().items {
        let text = String::from_utf8_lossy(&item.value).into_owned();
        assert!(!text.contains(VALUE) && !text.contains(&encoded), "{} holds the value: {text}", item.key);
    }
    assert_eq!(cluster.delete("/secrets/db").await.status, 204);
    assert_eq!(cluster.delete("/configs/app").await.status, 204);
    assert_eq!(cluster.delete("/secrets/db").await.refusal(), (404, "secret db not found"));
    let left = cluster.store.list("/mesh/sealed/").await.unwrap().items;
    assert!(left.is_empty(), "a removed object's data stays: {left:?}");
}

#[tokio::test]
async fn the_longest_are_accepted_and_longer_ones_refused() {
    let cluster = Cluster::start().await;
    for (kind, limit) in [("secrets", 512_000), ("configs", 1_024_000)] {
        let longest = vec![0xa5; limit - 1];
        let id = store(&cluster, kind, "longest", &longest).await;
        if kind == "configs" {
            let found = cluster.get(&format!("/configs/{id}")).await.body;
            assert!(found["Spec"]["Data"] == BASE64.encode(&longest), "the longest config came back changed");
        }
        let too_long = json!({"Name": "longer", "Data": BASE64.encode(vec![0xa5; limit])});
        let answer = cluster.post(&format!("/{kind}/create"), &too_long).await;
        let noun = kind.trim_end_matches('s');
        let message = format!(
            "rpc error: code = InvalidArgument desc = {noun} data must be larger than 0 and less than {limit} bytes"
        );
        assert_eq!(answer.refusal(), (400, message.as_str()));
    }
    let twice = json!({"Name": "twice", "Data": BASE64.encode(vec![0xa5; 2_048_000])});
    let message = "rpc error: code = InvalidArgument desc = config data must be larger than 0 and less than 1024000 bytes";
    assert_eq!(cluster.post("/configs/create", &twice).await.refusal(), (400, message));
    let labelled = json!({"Name": "l", "Labels": {"a": "b".repeat(1_300_000)}, "Data": "MQ=="});
    let answer = cluster.post("/configs/create", &labelled).await;
    assert!(answer.refusal().0 == 400 && answer.refusal().1.contains("is too large"), "saw {answer:?}");
    let huge = json!({"Name": "huge", "Data": "A".repeat(5_000_000)});
    assert_eq!(cluster.post("/configs/create", &huge).await.status, 413);
}

#[tokio::test]
async fn names_are_unique_in_their_kind() {
    let cluster = Cluster::start().await;
    store(&cluster, "secrets", "db", b"1").await;
    store(&cluster, "configs", "db", b"1").await;
    let again = json!({"Name": "db", "Data": "MQ=="});
    assert_eq!(
        cluster.post("/secrets/create", &again).await.refusal(),
        (409, "rpc error: code = AlreadyExists desc = secret db already exists")
    );
    assert_eq!(
        cluster.post("/configs/create", &again).await.refusal(),
        (409, "rpc error: code = AlreadyExists desc = config db already exists")
    );
    for (body, message) in [
        (json!({"Data": "MQ=="}), "name must be provided"),
        (json!({"Name": "a b", "Data": "MQ=="}), "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed"),
        (json!({"Name": "a", "Data": "§"}), "Data: illegal base64 data"),
        (json!({"Name": "a"}), "secret data must be larger than 0 and less than 512000 bytes"),
    ] {
        let answer = cluster.post("/secrets/create", &body).await;
        let (status, seen) = answer.refusal();
        assert!(status == 400 && seen.contains(message), "expected {message:?} for {body}, saw {seen:?}");
    }
}

#[tokio::test]
async fn lists_are_filtered_as_docker_filters_them() {
    let cluster = Cluster::start().await;
    let id = store(&cluster, "secrets", "web", b"1").await;
    store(&cluster, "secrets", "web2", b"1").await;
    store(&cluster, "secrets", "db", b"1").await;
    let by_id = format!(r#"{{"id":["{}"]}}"#, &id[..12]);
    for (filters, expected) in [
        (r#"{"name":{"web":true}}"#, vec!["web", "web2"]),
        (r#"{"names":["web"]}"#, vec!["web"]),
        (r#"{"label":["tier=db"]}"#, vec!["db"]),
        (by_id.as_str(), vec!["web"]),
        ("", vec!["db", "web", "web2"]),
    ] {
        let answer = cluster.get(&format!("/secrets?filters={}", encoded(filters))).await;
        let mut names: Vec<_> =
            answer.body.as_array().unwrap().iter().map(|one| one["Spec"]["Name"].clone()).collect();
        names.sort_by_key(ToString::to_string);
        assert_eq!(names, expected, "filtering by {filters}");
    }
    let unknown = cluster.get(&format!("/secrets?filters={}", encoded(r#"{"foo":["x"]}"#))).await;
    assert_eq!(unknown.refusal(), (400, "Invalid filter 'foo'"));
}

#[tokio::test]
async fn labels_alone_can_be_changed() {
    let cluster = Cluster::start().await;
    let secret = store(&cluster, "secrets", "db", VALUE.as_bytes()).await;
    let config = store(&cluster, "configs", "app", VALUE.as_bytes()).await;
    let refused = (400, "rpc error: code = InvalidArgument desc = only updates to Labels are allowed");
    for (kind, id) in [("secrets", &secret), ("configs", &config)] {
        let renamed = relabel(&cluster, kind, id, |spec| spec["Name"] = json!("other")).await;
        assert_eq!(renamed.refusal(), refused, "renaming one of {kind}");
        let changed = relabel(&cluster, kind, id, |spec| spec["Data"] = json!("MQ==")).await;
        assert_eq!(changed.refusal(), refused, "changing the data of one of {kind}");
        // A stack that is deployed again sends this.
        let same = relabel(&cluster, kind, id, |spec| {
            spec["Data"] = json!(BASE64.encode(VALUE));
            spec["Labels"] = json!({"stack": "s"});
        });
        let same = same.await;
        assert_eq!(same.status, 200, "{}", same.body);
        let found = cluster.get(&format!("/{kind}/{id}")).await.body;
        assert_eq!(found["Spec"]["Labels"], json!({"stack": "s"}));
        let stale = cluster.post(&format!("/{kind}/{id}/update?version=1"), &found["Spec"]).await;
        assert_eq!(stale.refusal(), (500, "rpc error: code = Unknown desc = update out of sequence"));
    }
}

#[tokio::test]
async fn what_is_in_use_stays_until_no_service_refers_to_it() {
    let cluster = Cluster::start().await;
    let old = store(&cluster, "secrets", "old", b"1").await;
    let new = store(&cluster, "secrets", "new", b"2").await;
    let web = cluster.create(&using("web", &old, "old")).await;
    let given = &using("web", &old, "old")["TaskTemplate"]["ContainerSpec"]["Secrets"];
    let kept = &cluster.service("web").await["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"];
    assert_eq!(kept, given, "the references come back as they were given");
    cluster.create(&using("db", &old, "old")).await;
    let both =
        "rpc error: code = InvalidArgument desc = secret 'old' is in use by the following services: db, web";
    assert_eq!(cluster.delete("/secrets/old").await.refusal(), (400, both));
    assert_eq!(cluster.delete("/services/db").await.status, 200);
    let one = "rpc error: code = InvalidArgument desc = secret 'old' is in use by the following service: web";
    assert_eq!(cluster.delete("/secrets/old").await.refusal(), (400, one));

    let rotated = cluster.update(&web, |spec| *spec = using("web", &new, "new")).await;
    assert_eq!(rotated.status, 200, "{}", rotated.body);
    let used =
        "rpc error: code = InvalidArgument desc = secret 'new' is in use by the following service: web";
    assert_eq!(cluster.delete("/secrets/new").await.refusal(), (400, used));
    assert_eq!(cluster.delete("/secrets/old").await.status, 204);
    // The previous spec can't be restored: it refers to a secret that is gone.
    let version = cluster.service(&web).await["Version"]["Index"].as_i64().unwrap();
    let rollback = format!("/services/{web}/update?version={version}&rollback=previous");
    assert_eq!(
        cluster.post(&rollback, &json!({})).await.refusal(),
        (400, "rpc error: code = InvalidArgument desc = secret not found: old")
    );
    let missing = cluster.post("/services/create", &using("late", &old, "old")).await;
    assert_eq!(missing.refusal(), (400, "rpc error: code = InvalidArgument desc = secret not found: old"));
    let misnamed = cluster.post("/services/create", &using("late", &new, "old")).await;
    assert_eq!(misnamed.status, 400, "{}", misnamed.body);
    assert_eq!(cluster.delete(&format!("/services/{web}")).await.status, 200);
    assert_eq!(cluster.delete("/secrets/new").await.status, 204);
    let left = cluster.store.list("/mesh/v1/refs/").await.unwrap().items;
    assert!(left.is_empty(), "references of removed services stay: {left:?}");
}

/// Either the removal of a secret or the creation of a service that refers to it succeeds, never
/// both.
pub(crate) async fn a_reference_and_a_removal_exclude_each_other(cluster: &Cluster) {
    for round in 0..8 {
        let name = format!("contested{round}");
        let id = store(cluster, "secrets", &name, b"1").await;
        let (spec, path) = (using(&name, &id, &name), format!("/secrets/{id}"));
        let (created, removed) = tokio::join!(cluster.post("/services/create", &spec), cluster.delete(&path));
        let outcome = (created.status.as_u16(), removed.status.as_u16());
        assert!(matches!(outcome, (201, 400) | (400, 204)), "creation and removal ended as {outcome:?}");
    }
}
