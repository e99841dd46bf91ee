//! The agent's HTTP endpoints for operators: `/metrics`, `/healthz`, `/readyz`.
//!
//! Invariants: `/healthz` says only that the event loop lives; `/readyz` turns good when the data
//! plane is attached and has its first table, and bad while the host has a setting with which mesh
//! can't work; losing the managers later doesn't turn it bad, but being removed from the cluster
//! does. A scrape reads maps off the async threads.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use mesh_admission::door::Door;
use mesh_admission::http;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::datapath::Datapath;

/// What the endpoints show.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Every metric of the agent.
    pub registry: Registry,
    /// The generation of the mesh table that carries traffic; 0 before the first.
    pub applied: watch::Receiver<u64>,
    /// The data plane, which watches the host's settings; `None` in userspace.
    pub datapath: Option<Arc<Datapath>>,
    /// Whether the node's cluster doesn't know it any more, so that it carries nothing.
    pub expelled: watch::Receiver<bool>,
    /// Why traffic is carried in userspace though the node's settings allow kernel programs.
    pub fallback: watch::Receiver<Option<String>>,
    /// Further routes, for tests.
    pub debug: Router<Arc<Admin>>,
}

/// Serves clients of `listener` that `door` admits until `shutdown`.
pub async fn serve(listener: TcpListener, admin: Admin, door: Arc<Door>, shutdown: CancellationToken) {
    let router = TowerToHyperService::new(router(admin));
    http::serve(listener, door, http::all_short, router, shutdown).await;
}

fn router(admin: Admin) -> Router {
    admin
        .debug
        .clone()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(admin))
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    if *admin.expelled.borrow() {
        let text = "this node was removed from its cluster: remove its identity file and join again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
    }
    match admin.datapath.as_ref().map(|datapath| datapath.host_settings()) {
        Some(Ok(host)) if !host.wrong.is_empty() => {
            let wrong = host.wrong.iter().map(|(setting, advice)| format!("{setting}: {advice}\n"));
            return (StatusCode::SERVICE_UNAVAILABLE, wrong.collect());
        }
        Some(Err(error)) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        Some(Ok(_)) | None => {}
    }
    match *admin.applied.borrow() {
        0 => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no mesh table is applied yet: see the log for the managers\n".to_owned(),
        ),
        generation => {
            let fallback = admin.fallback.borrow().as_ref().map(|why| format!("{why}\n")).unwrap_or_default();
            (StatusCode::OK, format!("table {generation} is applied\n{fallback}"))
        }
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let registry = admin.registry.clone();
    let text =
        tokio::task::spawn_blocking(move || TextEncoder::new().encode_to_string(&registry.gather())).await;
    match text {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn get_path(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn readiness_waits_for_the_first_table_and_health_does_not() {
        let (applied, receiver) = watch::channel(0);
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("mesh_test_total", "A test.").expect("a counter");
        registry.register(Box::new(counter)).expect("it is registered");
        let (expelled, is_expelled) = watch::channel(false);
        let (fallback, why) = watch::channel(None);
        let router = router(Admin {
            registry,
            applied: receiver,
            datapath: None,
            expelled: is_expelled,
            fallback: why,
            debug: Router::new(),
        });
        assert_eq!(get_path(&router, "/healthz").await.0, StatusCode::OK);
        assert_eq!(get_path(&router, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        applied.send_replace(7);
        assert_eq!(get_path(&router, "/readyz").await, (StatusCode::OK, "table 7 is applied\n".to_owned()));
        fallback.send_replace(Some("no programs".to_owned()));
        let still_ready = (StatusCode::OK, "table 7 is applied\nno programs\n".to_owned());
        assert_eq!(get_path(&router, "/readyz").await, still_ready, "it says why it is in userspace");
        let (status, text) = get_path(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("mesh_test_total 0"), "expected the counter, saw: {text}");
        expelled.send_replace(true);
        assert_eq!(get_path(&router, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE, "no member");
    }
}
