//! `/metrics`, `/healthz` and `/readyz`.
//!
//! Invariant: reading them never waits for the store.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder as _, Registry, TextEncoder};

use crate::feed::watch::Feed;

/// What the endpoints read.
#[derive(Clone)]
pub struct Admin {
    /// Every family of this process.
    pub registry: Registry,
    /// Whether a snapshot was ever had.
    pub feed: Feed,
}

/// The endpoints.
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

/// Ready once there is a snapshot to serve; losing etcd later doesn't unready a manager that serves
/// its nodes.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.feed.snapshot().cluster.is_some() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the cluster was not read from etcd yet\n").into_response()
}
