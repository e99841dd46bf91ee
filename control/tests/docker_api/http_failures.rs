//! Tests of refusals, and of an unreachable etcd.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use mesh_state::store::MemoryStore;
use serde_json::json;

use crate::cluster::{Cluster, spec};

async fn post_raw(cluster: &Cluster, content_type: &str, body: impl Into<Body>) -> (u16, String) {
    let request = Request::post("/v1.43/services/create")
        .header("content-type", content_type)
        .body(body.into())
        .unwrap();
    let answer = cluster.send(request).await;
    let (status, message) = answer.refusal();
    (status, message.to_owned())
}

#[tokio::test]
async fn bad_bodies_are_refused_with_a_message() {
    let cluster = Cluster::start().await;
    let json = "application/json";
    for (content_type, body, status, message) in [
        (json, String::new(), 400, "invalid JSON: got EOF while reading request body"),
        (json, "{\"Name\":".to_owned(), 400, "invalid JSON: EOF while parsing a value"),
        (json, "7".to_owned(), 400, "invalid JSON: expected an object"),
        (json, "{\"Name\":[]}".to_owned(), 400, "invalid JSON: Name: invalid type: sequence"),
        ("text/plain", spec("web", 1).to_string(), 400, "unsupported Content-Type header (text/plain)"),
        (json, "[".repeat(10_000), 400, "invalid JSON: recursion limit exceeded"),
        (json, " ".repeat(300 * 1024), 413, "request body is larger than 262144 bytes"),
    ] {
        let seen = post_raw(&cluster, content_type, body).await;
        assert_eq!(seen.0, status, "expected {message:?}, saw {seen:?}");
        assert!(seen.1.starts_with(message), "expected {message:?}, saw {seen:?}");
    }
    assert_eq!(cluster.get("/services").await.body, json!([]));
}

/// A client that gets its answer before it has written everything sees a broken pipe instead.
#[tokio::test]
async fn a_body_is_taken_in_before_anything_is_answered() {
    let cluster = Cluster::start().await;
    let id = cluster.create(&spec("web", 0)).await;
    for path in [
        "/secrets/create".to_owned(),
        "/nowhere".to_owned(),
        "/v1.99/services/create".to_owned(),
        format!("/services/{id}/update?version=x"),
        format!("/services/{id}/update?version=1&rollback=previous"),
    ] {
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = taken.clone();
        let chunks = futures::stream::iter((0..8).map(move |_| {
            counter.fetch_add(1024, Ordering::SeqCst);
            Ok::<_, std::io::Error>(vec![b' '; 1024])
        }));
        let request = Request::post(path.as_str()).body(Body::from_stream(chunks)).unwrap();
        let answer = cluster.send(request).await;
        assert!(answer.status.as_u16() >= 400, "POST {path} was answered {}", answer.status);
        assert_eq!(taken.load(Ordering::SeqCst), 8 * 1024, "POST {path} left bytes unread");
    }
}

/// A body with an announced length that never comes.
struct Announced(u64);

impl hyper::body::Body for Announced {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn a_body_of_an_announced_gigabyte_is_refused_at_once() {
    let cluster = Cluster::start().await;
    let asked = post_raw(&cluster, "application/json", Body::new(Announced(1 << 30)));
    let seen = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("an answer before the body");
    assert_eq!(seen, (413, "request body is larger than 262144 bytes".to_owned()));
}

#[tokio::test]
async fn a_bad_policy_is_refused_with_the_known_ones_and_nothing_is_stored() {
    let cluster = Cluster::start().await;
    let mut bad = spec("web", 1);
    bad["Labels"] = json!({"mesh.lb.policy": "fastest"});
    let before = cluster.store.list("/").await.unwrap();
    let answer = cluster.post("/services/create", &bad).await;
    let message = "invalid label mesh.lb.policy=fastest: must be one of round-robin, random, least-connections, least-load, source-hash";
    assert_eq!(answer.refusal(), (400, message));
    assert_eq!(cluster.store.list("/").await.unwrap(), before, "a refused creation left something behind");

    cluster.create(&spec("web", 0)).await;
    let answer = cluster.update("web", |spec| spec["Labels"]["mesh.lb.policy"] = json!("fastest")).await;
    assert_eq!(answer.refusal(), (400, message));
    assert_eq!(cluster.service("web").await["Spec"]["Labels"], json!({}));
    let good = cluster.update("web", |spec| spec["Labels"]["mesh.lb.policy"] = json!("least-connections"));
    assert_eq!(good.await.status, 200);
}

#[tokio::test]
async fn unsupported_features_are_refused_by_name() {
    let cluster = Cluster::start().await;
    cluster.create(&spec("web", 0)).await;
    let mut job = spec("job", 1);
    job["Mode"] = json!({"ReplicatedJob": {}});
    job["UpdateConfig"] = json!({"Parallelism": 1});
    let templating = json!({"Name": "x", "Data": "eA==", "Templating": {"Name": "jinja"}});
    let mut unreadable = spec("constraint", 1);
    unreadable["TaskTemplate"]["Placement"]["Constraints"] = json!(["node.role=worker"]);
    for (path, body, status, named) in [
        ("/services/create", &job, 400, "Jobs may not have an update config"),
        ("/services/create", &unreadable, 500, "constraint expected one operator from ==, !="),
        ("/secrets/create", &templating, 400, "unrecognized template driver"),
        ("/configs/create", &templating, 400, "unrecognized template driver"),
        ("/swarm/init", &json!({}), 503, "This node is already part of a swarm"),
    ] {
        let answer = cluster.post(path, body).await;
        let (code, message) = answer.refusal();
        assert_eq!(code, status, "POST {path}: {message}");
        assert!(message.contains(named), "expected {named:?} from POST {path}, saw {message}");
    }
    assert_eq!(cluster.get("/secrets").await.body, json!([]));
    assert_eq!(cluster.get("/configs").await.body, json!([]));
    assert_eq!(cluster.get("/secrets/x").await.refusal(), (404, "secret x not found"));
    assert_eq!(cluster.get("/configs/x").await.refusal(), (404, "config x not found"));
}

#[tokio::test(start_paused = true)]
async fn without_etcd_reads_go_on_and_writes_are_refused_until_it_is_back() {
    let store = MemoryStore::new();
    let cluster = Cluster::on(Arc::new(store.clone())).await;
    cluster.create(&spec("web", 0)).await;
    store.set_reachable(false);
    // The watch has not noticed yet: the write itself meets the outage.
    let write = cluster.post("/services/create", &spec("early", 0)).await;
    let (status, message) = write.refusal();
    assert_eq!(status, 503, "{message}");
    assert!(message.contains("cannot reach etcd"), "expected the outage, saw {message}");
    cluster.until_connected(false).await;
    for path in ["/services", "/tasks", "/nodes", "/networks", "/swarm", "/secrets", "/services/web"] {
        let answer = cluster.get(path).await;
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
    }
    assert_eq!(cluster.service("web").await["Spec"]["Name"], "web", "what the manager saw last");
    let write = cluster.post("/services/create", &spec("other", 0)).await;
    let (status, message) = write.refusal();
    assert_eq!(status, 503, "{message}");
    let words = "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. \
                 Make sure more than half of the managers are online.";
    assert!(message.starts_with(words), "expected Swarm's words, saw {message}");
    assert_eq!(cluster.delete("/services/web").await.status, 503);
    assert_eq!(cluster.get("/_ping").await.status, 200);
    let info = cluster.get("/info").await;
    assert!(
        info.body["Swarm"]["Error"].as_str().unwrap().contains("can't reach etcd"),
        "expected the outage in {}",
        info.body["Swarm"]["Error"]
    );
    store.set_reachable(true);
    cluster.until_connected(true).await;
    assert_eq!(cluster.service("web").await["Spec"]["Name"], "web");
    cluster.create(&spec("other", 0)).await;
}
