//! Tests of services over HTTP.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::cluster::{Cluster, published, spec};

#[tokio::test]
async fn ping_gives_the_client_version_and_cache_headers() {
    let cluster = Cluster::start().await;
    for path in ["/_ping", "/v1.43/_ping"] {
        for method in ["GET", "HEAD"] {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            let answer = cluster.send(request).await;
            assert_eq!(answer.status, 200, "{method} {path}");
            assert_eq!(answer.headers["api-version"], "1.50", "{method} {path}");
            assert_eq!(answer.headers["swarm"], "active/manager");
            assert_eq!(answer.headers["ostype"], "linux");
            assert_eq!(answer.body, if method == "GET" { "OK" } else { "" });
        }
    }
}

#[tokio::test]
async fn unknown_pages_and_versions_are_refused_in_dockers_form() {
    let cluster = Cluster::start().await;
    for (path, expected) in [
        ("/nowhere", (404, "page not found")),
        ("/v1.43/nowhere", (404, "page not found")),
        ("/v1.51/services", (400, "client version 1.51 is too new. Maximum supported API version is 1.50")),
        (
            "/v1.23/services",
            (
                400,
                "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
            ),
        ),
    ] {
        assert_eq!(cluster.get(path).await.refusal(), expected, "GET {path}");
    }
    assert_eq!(cluster.delete("/services").await.refusal(), (405, "method not allowed"));
    assert_eq!(cluster.get("/v1.24/services").await.status, 200);
    assert_eq!(cluster.get("/v1.50/services").await.status, 200);
}

#[tokio::test]
async fn a_service_comes_back_as_it_was_given() {
    let cluster = Cluster::start().await;
    let mut given = published("web", 8080);
    given["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = json!({"Test": ["NONE"], "Retries": 3});
    given["TaskTemplate"]["ContainerSpec"]["Novel"] = json!({"kept": [1]});
    given["UpdateConfig"] =
        json!({"Parallelism": 2, "MaxFailureRatio": 0.1, "FailureAction": "pause", "Order": "stop-first"});
    given["Later"] = json!("kept too");
    let id = cluster.create(&given).await;
    assert_eq!(id.len(), 25);
    let service = cluster.service("web").await;
    assert_eq!(service["Spec"], given, "expected the spec as it was given");
    assert_eq!(service["ID"], id.as_str());
    assert_eq!(service["Endpoint"]["Ports"], given["EndpointSpec"]["Ports"]);
    for query in [&id, &id[..12]] {
        assert_eq!(cluster.service(query).await["ID"], id.as_str(), "looking for {query}");
    }
}

#[tokio::test]
async fn keys_in_any_case_are_understood() {
    let cluster = Cluster::start().await;
    let given = json!({"name": "web", "taskTemplate": {"containerspec": {"image": "nginx"}},
                       "mode": {"replicated": {}}});
    cluster.create(&given).await;
    let service = cluster.service("web").await;
    assert_eq!(service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], "nginx");
    assert_eq!(service["Spec"]["Mode"], json!({"Replicated": {"Replicas": 1}}), "the mode comes back filled");
}

#[tokio::test]
async fn a_name_and_a_port_are_chosen_when_they_are_left_open() {
    let cluster = Cluster::start().await;
    let id = cluster.create(&published("", 0)).await;
    let service = cluster.service(&id).await;
    let name = service["Spec"]["Name"].as_str().unwrap();
    assert_eq!(name.split('_').count(), 2, "expected adjective_surname, saw {name}");
    assert_eq!(service["Endpoint"]["Ports"][0]["PublishedPort"], 30_000);
    assert_eq!(
        service["Spec"]["EndpointSpec"]["Ports"][0].get("PublishedPort"),
        None,
        "the spec is the user's"
    );
    let answer = cluster.update(&id, |spec| spec["Labels"]["a"] = json!("b")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        cluster.service(&id).await["Endpoint"]["Ports"][0]["PublishedPort"],
        30_000,
        "the port is kept"
    );
}

#[tokio::test]
async fn a_taken_name_or_port_is_refused_and_free_again_after_removal() {
    let cluster = Cluster::start().await;
    let id = cluster.create(&published("myweb", 80)).await;
    let taken = cluster.post("/services/create", &spec("myweb", 1)).await;
    let conflict = "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service myweb already exists";
    assert_eq!(taken.refusal(), (409, conflict));
    let clash = cluster.post("/services/create", &published("other", 80)).await;
    let in_use = format!(
        "rpc error: code = InvalidArgument desc = port '80' is already in use by service 'myweb' ({id}) as an ingress port"
    );
    assert_eq!(clash.refusal(), (400, in_use.as_str()));
    assert_eq!(cluster.delete("/services/myweb").await.status, 200);
    assert_eq!(cluster.get("/services/myweb").await.refusal(), (404, "service myweb not found"));
    assert_eq!(cluster.delete("/services/myweb").await.refusal(), (404, "service myweb not found"));
    cluster.create(&published("myweb", 80)).await;
}

#[tokio::test]
async fn a_rollback_returns_to_the_previous_spec() {
    let cluster = Cluster::start().await;
    let id = cluster.create(&spec("web", 1)).await;
    let rollback = async || {
        let version = cluster.service(&id).await["Version"]["Index"].as_i64().unwrap();
        cluster.post(&format!("/services/{id}/update?version={version}&rollback=previous"), &json!({})).await
    };
    let refused =
        format!("rpc error: code = FailedPrecondition desc = service {id} does not have a previous spec");
    assert_eq!(rollback().await.refusal(), (400, refused.as_str()));
    let changed =
        cluster.update(&id, |spec| spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!("nginx:2"));
    assert_eq!(changed.await.status, 200);
    assert_eq!(rollback().await.status, 200);
    let service = cluster.service(&id).await;
    let image = |spec: &Value| spec["TaskTemplate"]["ContainerSpec"]["Image"].clone();
    assert_eq!(
        (image(&service["Spec"]), image(&service["PreviousSpec"])),
        (json!("nginx:latest"), json!("nginx:2"))
    );
    assert_eq!(service["UpdateStatus"]["State"], "rollback_started");
    assert_eq!(service["UpdateStatus"]["Message"], "manually requested rollback");
}

#[tokio::test]
async fn lists_are_filtered_as_docker_filters_them() {
    let cluster = Cluster::start().await;
    let mut labelled = spec("web", 1);
    labelled["Labels"] = json!({"tier": "front"});
    cluster.create(&labelled).await;
    cluster.create(&spec("web2", 2)).await;
    let mut global = spec("agent", 1);
    global["Mode"] = json!({"Global": {}});
    cluster.create(&global).await;
    for (filters, expected) in [
        (r#"{"name":{"web":true}}"#, vec!["web", "web2"]),
        (r#"{"label":["tier=front"]}"#, vec!["web"]),
        (r#"{"mode":["global"]}"#, vec!["agent"]),
        (r#"{"name":["web2","agent"]}"#, vec!["agent", "web2"]),
        ("", vec!["agent", "web", "web2"]),
    ] {
        let answer = cluster.get(&format!("/services?filters={}", encoded(filters))).await;
        let mut names: Vec<_> =
            answer.body.as_array().unwrap().iter().map(|service| service["Spec"]["Name"].clone()).collect();
        names.sort_by_key(ToString::to_string);
        assert_eq!(names, expected, "filtering by {filters}");
    }
    let unknown = cluster.get(&format!("/services?filters={}", encoded(r#"{"foo":["x"]}"#))).await;
    assert_eq!(unknown.refusal(), (400, "Invalid filter 'foo'"));
    let mode = cluster.get(&format!("/services?filters={}", encoded(r#"{"mode":["x"]}"#))).await;
    assert_eq!((mode.status.as_u16(), mode.body), (200, json!([])), "a mode that no service has");
}

#[tokio::test]
async fn requests_are_counted_by_route_not_by_path() {
    let cluster = Cluster::start().await;
    for path in ["/v1.43/services/a", "/v1.50/services/b", "/services/c", "/nowhere"] {
        assert_eq!(cluster.get(path).await.status, 404);
    }
    let families = cluster.registry.gather();
    let requests = families.iter().find(|family| family.name() == "mesh_api_requests_total").unwrap();
    let counted = |route: &str| {
        let of_route = requests.get_metric().iter().filter(|metric| {
            metric.get_label().iter().any(|label| label.name() == "route" && label.value() == route)
        });
        of_route.map(|metric| metric.get_counter().get_value()).sum::<f64>()
    };
    assert!((counted("/services/{id}") - 3.0).abs() < f64::EPSILON, "expected 3, saw {requests:?}");
    assert!((counted("unmatched") - 1.0).abs() < f64::EPSILON, "expected 1, saw {requests:?}");
}

/// A parameter's text, URL-encoded.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes().flat_map(|byte| [String::from("%"), format!("{byte:02X}")]).collect()
}

#[tokio::test]
async fn registry_credentials_are_stored_sealed_and_never_shown() {
    let cluster = Cluster::start().await;
    let credentials = "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6ImhpZGRlbiJ9";
    let request = Request::post("/services/create")
        .header("Content-Type", "application/json")
        .header("X-Registry-Auth", credentials)
        .body(Body::from(spec("web", 1).to_string()))
        .unwrap();
    let answer = cluster.send(request).await;
    assert_eq!((answer.status.as_u16(), &answer.body["Warnings"]), (201, &json!(null)), "{}", answer.body);
    assert!(!cluster.service("web").await.to_string().contains(credentials), "the API shows credentials");
    let stored = cluster.store.list(mesh_state::keys::ROOT).await.unwrap();
    let sealed = cluster.context.snapshot().services.values().next().unwrap().registry_auth.clone().unwrap();
    let opened = cluster.context.sealer.open(mesh_control::context::REGISTRY_AUTH, &sealed).unwrap();
    assert_eq!(String::from_utf8_lossy(&opened), credentials);
    for item in stored.items {
        let text = String::from_utf8_lossy(&item.value).into_owned();
        assert!(!text.contains(credentials), "{} holds credentials in clear", item.key);
    }
    cluster.update("web", |spec| spec["Labels"] = json!({"a": "b"})).await;
    let kept = cluster.context.snapshot().services.values().next().unwrap().registry_auth.clone();
    assert_eq!(kept, Some(sealed), "an update without credentials keeps them");
    assert_eq!(
        cluster.post("/services/web/update?version=1&registryAuthFrom=nowhere", &json!({})).await.refusal(),
        (400, "unsupported registryAuthFrom value 'nowhere'")
    );
}
