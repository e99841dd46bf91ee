//! Tests of streams over HTTP: events, and logs as far as they need no node.

use mesh_state::node::NodeState;
use serde_json::{Value, json};

use crate::cluster::{Cluster, spec};
use crate::http::encoded;

/// All past events of the cluster that pass `filters`, as `kind action name`.
async fn events(cluster: &Cluster, filters: &str) -> Vec<String> {
    // The stream ends at the next full second.
    let until = chrono::Utc::now().timestamp() + 1;
    let path = format!("/events?since=0&until={until}&filters={}", encoded(filters));
    let lines = cluster.lines(&path).await;
    let line = |event: Value| {
        assert_eq!(event["scope"], "swarm", "{event}");
        assert!(
            event["timeNano"].as_i64().unwrap() / 1_000_000_000 == event["time"].as_i64().unwrap(),
            "{event}"
        );
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let actor = &event["Actor"];
        assert!(!text(&actor["ID"]).is_empty(), "{event}");
        format!("{} {} {}", text(&event["Type"]), text(&event["Action"]), text(&actor["Attributes"]["name"]))
    };
    lines.into_iter().map(line).collect()
}

#[tokio::test]
async fn events_are_streamed_with_dockers_filters() {
    let cluster = Cluster::start().await;
    cluster.create(&spec("web", 1)).await;
    cluster.believe(3, NodeState::Down).await;
    assert_eq!(cluster.delete("/services/web").await.status, 200);
    let services = events(&cluster, r#"{"type":["service"]}"#).await;
    assert_eq!(services, ["service create web", "service remove web"]);
    assert_eq!(events(&cluster, r#"{"service":["web"],"event":["remove"]}"#).await, ["service remove web"]);
    let down = events(&cluster, r#"{"node":{"node-3":true},"event":{"update":true}}"#).await;
    assert!(down.contains(&"node update node-3".to_owned()), "saw {down:?}");
    assert_eq!(events(&cluster, r#"{"scope":["local"]}"#).await, [""; 0]);
    let refused = cluster.get("/events?since=soon").await;
    let (status, message) = refused.refusal();
    assert!(status == 400 && message.contains("\"since\""), "{message}");
    assert_eq!(cluster.get("/events?since=9&until=8").await.status, 400);
}

#[tokio::test]
async fn parameters_of_logs_are_checked_before_the_stream_begins() {
    let cluster = Cluster::start().await;
    cluster.create(&spec("web", 0)).await;
    for (query, expected) in [
        ("", "Bad parameters: you must choose at least one stream"),
        ("?stdout=1&tail=-1", "negative tail values not supported"),
        ("?stdout=1&tail=x", "tail value must be a positive integer or \"all\""),
        ("?stderr=1&since=yesterday", "is not a Unix time"),
    ] {
        let answer = cluster.get(&format!("/services/web/logs{query}")).await;
        let (status, message) = answer.refusal();
        assert!(status == 400 && message.contains(expected), "{query}: {status} {message}");
    }
    assert_eq!(cluster.get("/services/no/logs?stdout=1").await.refusal(), (404, "service no not found"));
    assert_eq!(cluster.get("/tasks/no/logs?stdout=1").await.refusal(), (404, "task no not found"));
    let nothing = cluster.get("/services/web/logs?stdout=1&stderr=1").await;
    assert_eq!((nothing.status.as_u16(), &nothing.body), (200, &json!("")), "no task, no line");
    assert_eq!(nothing.headers["content-type"], "application/vnd.docker.multiplexed-stream");
    let older = cluster.get("/v1.41/services/web/logs?stdout=1").await;
    assert_eq!(older.headers["content-type"], "application/vnd.docker.raw-stream");
}
