//! Serves `/metrics`, `/healthz` and `/readyz`.
//!
//! Invariant: no endpoint waits for the store.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder as _, Registry, TextEncoder};

use crate::feed::watch::Feed;

/// The sources of the endpoints.
#[derive(Clone)]
pub struct Admin {
    /// All metric families of this process.
    pub registry: Registry,
    /// The feed, for whether there is a snapshot.
    pub feed: Feed,
}

/// The router that serves the endpoints of `admin`.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let encoder = TextEncoder::new();
    let mut body = Vec::new();
    match encoder.encode(&admin.registry.gather(), &mut body) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], body).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("encode metrics: {error}\n")).into_response()
        }
    }
}

/// Ready once there is a snapshot to serve. Losing etcd later doesn't make a manager unready that
/// still serves its nodes.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.feed.snapshot().cluster.is_some() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the cluster was not read from etcd yet\n").into_response()
}
